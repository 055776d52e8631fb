"""The model under DeepSpeed: one optimizer step, what it updates, and where its state is held."""
