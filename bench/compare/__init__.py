"""Two result files of one machine side by side, and a verdict that never passes by accident."""
