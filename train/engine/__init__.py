"""The model under DeepSpeed: the optimizer step and the state that it updates."""
