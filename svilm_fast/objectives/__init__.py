"""The three losses of S-ViLM and the model that trains with their weighted sum."""
