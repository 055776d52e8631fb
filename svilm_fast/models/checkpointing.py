"""Activation checkpointing of one block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint


def run(block: Callable[..., Any], *args: Any, recompute: bool, **kwargs: Any) -> Any:
    """Calls the block, keeping only its inputs for backward if `recompute`.

    The generators' state is not kept: every random number of a block comes from counters.
    """
    if not recompute:
        return block(*args, **kwargs)
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
