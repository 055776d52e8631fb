"""Checkpoints in DeepSpeed's and in the portable format: save, verify, load, convert."""
