"""Tasks: what the training engine trains and evaluates, one folder for each."""
