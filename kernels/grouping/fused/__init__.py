"""Grouping in Triton: kernels, their host code, autograd and operators."""
