"""Latency and bandwidth of the collectives that a step uses, and the traffic model's check."""
