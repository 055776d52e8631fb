"""From an image model's patch embedding to that of a video."""

from __future__ import annotations

from torch import Tensor


def inflated(patch: Tensor, tubelet: int) -> Tensor:
    """Patch embedding [C, 3, p, p] to the linear one of tubelets, [C, tubelet * p * p * 3].

    Every time step gets the weight divided by `tubelet`, so that a still tubelet gives what the
    image gives.
    """
    each = patch.permute(0, 2, 3, 1).flatten(1) / tubelet
    return each.repeat(1, tubelet)
