"""Benchmarks and the gates that are built on them."""
