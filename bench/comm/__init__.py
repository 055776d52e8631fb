"""Latency and bandwidth of the collectives of a step, and a check of the traffic model."""
