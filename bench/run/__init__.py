"""Runs registered benchmarks and writes their records."""
