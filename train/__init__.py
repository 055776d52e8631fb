"""Pre-training: configuration, DeepSpeed engine, loop, checkpoints."""
