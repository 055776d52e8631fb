"""The configuration of a run: typed tree, recipes, overrides, and the dictionary for DeepSpeed."""
