"""svilm_fast: a fast, exact training core for structured video-language pre-training."""

__version__ = "0.1.0"
