"""Grounding in Triton: forward and backward kernels, their host code, autograd and operators."""
