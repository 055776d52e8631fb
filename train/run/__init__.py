"""A training run: what is built, the step of the engine, the loop, and what a run prints."""
