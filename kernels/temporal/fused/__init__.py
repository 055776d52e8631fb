"""The temporal ops in Triton: one launch each way, everything else is a sum of b numbers."""
