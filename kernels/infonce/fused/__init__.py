"""InfoNCE in Triton: kernels, their host code, operators and autograd."""
