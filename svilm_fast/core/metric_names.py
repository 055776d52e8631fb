"""Names of metrics: an evaluator's have its name in front, as in `retrieval/t2v_R@1`."""

from __future__ import annotations

import re

# Runs of earlier versions logged retrieval with an underscore in place of the slash.
OLD_RETRIEVAL = re.compile(r"retrieval_((?:t2v|v2t)_(?:R@\d+|MedR|MeanR))")


def current_name(name: str) -> str:
    """Return a metric's name as it is written today, for a name from any version's log."""
    old = OLD_RETRIEVAL.fullmatch(name)
    return f"retrieval/{old[1]}" if old else name


def namespace_of(name: str) -> str:
    """Return the evaluator that a metric belongs to; empty for the metrics of training."""
    return current_name(name).rpartition("/")[0]
