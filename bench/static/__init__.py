"""The gate that needs no GPU: what the compiler makes of every declared kernel variant."""
