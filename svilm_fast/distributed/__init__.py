"""Training on large batches: the gradient cache and how gradients are reduced under it."""
