"""The fused operations and their references. Knows tensors and process groups only."""
