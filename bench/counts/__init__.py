"""Repeatable counts instead of times: instructions, collectives, host waits, peak bytes."""
