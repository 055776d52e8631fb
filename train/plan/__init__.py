"""Predict memory, FLOPs, traffic and time of a configuration, and choose what is `auto`."""
