"""Fuzzing of all code that reads untrusted input, and of the kernels (docs/fuzzing.md)."""
