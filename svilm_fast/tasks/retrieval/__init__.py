"""Text-video retrieval, fine-tuned on videos with captions."""
