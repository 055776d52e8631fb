"""`svilm data bench`: loading speed, by stage and against loops that users would write."""
