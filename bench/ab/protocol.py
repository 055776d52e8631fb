"""What both ends of the pipe between the command and a worker agree on."""

PROTOCOL = 1
"""Raised when a request or reply changes its meaning."""

SUITES_MODULE = "svilm_fast.bench.suites"
"""The module whose `benchmarks(suites, device, only)` a worker serves."""
