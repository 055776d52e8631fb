"""A training run: session, loop, hooks, metrics, console and report."""
