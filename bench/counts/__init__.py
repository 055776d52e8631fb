"""Counts that do not depend on the clock: instructions, collectives, host waits, peak bytes."""
