"""Grouping in Triton: tokens are read once forward, read once and their gradient written once."""
