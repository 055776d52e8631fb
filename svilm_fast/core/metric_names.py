"""Metric names; those of an evaluator start with its name, as in `retrieval/t2v_R@1`."""

from __future__ import annotations

import re

# Earlier versions logged `retrieval_t2v_R@1`.
OLD_RETRIEVAL = re.compile(r"retrieval_((?:t2v|v2t)_(?:R@\d+|MedR|MeanR))")


def current_name(name: str) -> str:
    """Return the current name of a metric that any version logged."""
    old = OLD_RETRIEVAL.fullmatch(name)
    return f"retrieval/{old[1]}" if old else name


def namespace_of(name: str) -> str:
    """Return the name of the evaluator of a metric; empty for training metrics."""
    return current_name(name).rpartition("/")[0]
