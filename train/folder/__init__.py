"""The run folder: its files, lock and owner, disk space, and the trust in its contents."""
