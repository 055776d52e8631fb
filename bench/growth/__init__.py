"""Loss over FLOPs of a grown network against one from scratch."""
