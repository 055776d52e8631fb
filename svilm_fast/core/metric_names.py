"""Names of metrics: an evaluator's have its name in front, as in `retrieval/t2v_R@1`."""

from __future__ import annotations

# Runs of earlier versions logged retrieval with an underscore in place of the slash.
OLD_RETRIEVAL = "retrieval_"


def current_name(name: str) -> str:
    """Return a metric's name as it is written today, for a name from any version's log."""
    if name.startswith(OLD_RETRIEVAL):
        return "retrieval/" + name.removeprefix(OLD_RETRIEVAL)
    return name


def namespace_of(name: str) -> str:
    """Return the evaluator that a metric belongs to; empty for the metrics of training."""
    return current_name(name).rpartition("/")[0]
