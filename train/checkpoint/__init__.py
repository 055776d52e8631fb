"""Checkpoints: DeepSpeed's, portable ones, what they are verified by, and what may be resumed."""
