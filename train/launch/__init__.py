"""Launchers of a run on one node and on many."""
