"""Commands that read a finished run: evaluation and report."""
