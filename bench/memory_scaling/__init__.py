"""How the memory of a loss and of a whole step grows with the global batch."""
