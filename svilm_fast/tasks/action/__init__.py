"""Action recognition: one label for a video."""
