"""Temporal localization: feature extraction, heads, training, classification, pictures."""
