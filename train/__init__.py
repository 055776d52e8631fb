"""Training of every task: configuration, DeepSpeed engine, loop, checkpoints, ranks."""
