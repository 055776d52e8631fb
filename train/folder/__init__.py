"""The run folder: its files, lock and owner, room on the disk, and whom its contents come from."""
