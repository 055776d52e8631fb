"""What opening an index costs, and what it leaves in the memory of ranks and workers."""
