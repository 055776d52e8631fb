"""Locked towers: parameters without gradient, as in LiT.

Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning" (arXiv 2111.07991).
"""

from __future__ import annotations

from torch import nn

from svilm_fast.models.config import Lock, TextConfig, VideoConfig
from svilm_fast.models.layers import place_of, tower_depths


def locked_levels(lock: Lock, depth: int) -> int:
    """Return how many levels of a tower are locked, counted from the embedding.

    The levels are the embedding, `depth` layers and the head.
    """
    if isinstance(lock, bool):
        return depth + 2 if lock else 0
    return depth + 1 - lock


def trained_layers(config: VideoConfig | TextConfig) -> int:
    """Return how many transformer layers of a tower are trained; they are its last ones."""
    return min(config.depth, max(0, config.depth + 1 - locked_levels(config.lock, config.depth)))


def lock_towers(encoder: nn.Module, locks: dict[str, Lock]) -> None:
    """Switch the gradient off for the locked levels of the towers `encoder.video` and `.text`."""
    parameters = {f"encoder.{name}": value for name, value in encoder.named_parameters()}
    depths = tower_depths(parameters)
    for name, parameter in parameters.items():
        place = place_of(name, depths)
        assert place is not None
        if place.level < locked_levels(locks[place.tower], place.depth):
            parameter.requires_grad_(False)
