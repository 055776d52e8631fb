"""Pre-training: S-ViLM on videos with captions, evaluated by retrieval."""
