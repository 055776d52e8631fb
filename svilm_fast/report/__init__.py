"""Pictures of what a model sees, and the page of a run."""
