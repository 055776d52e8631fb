"""Fuzzing of whatever reads what somebody else wrote, and of the kernels (docs/fuzzing.md)."""
