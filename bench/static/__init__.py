"""The gate that needs no GPU: it checks the compiled code of every declared kernel variant."""
