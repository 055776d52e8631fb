"""Compares two result files of one machine; nothing passes without having been measured."""
