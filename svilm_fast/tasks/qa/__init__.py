"""Question answering: questions about a video, answered from a vocabulary of training answers."""
