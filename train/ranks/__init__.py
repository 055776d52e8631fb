"""The ranks of a run: process group, rank monitor, failure attribution, consistency check."""
