"""What a configuration will need before it runs: memory, FLOPs, traffic, time, and the choices."""
