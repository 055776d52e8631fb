"""Off-line work on data: pure functions from a shard's input to files, resumable and parallel."""
