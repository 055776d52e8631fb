"""What the fused temporal kernels take at most; more goes the reference path."""

MAX_BCE_SEGMENTS = 512
MAX_POOL_SEGMENTS = 64
