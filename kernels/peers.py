"""Peers: other implementations that an op is measured against, each in its op's `peers.py`.

A peer takes the keyword arguments that the op's `make_inputs` gives and returns the op's first
output. It returns `NotImplemented` for a case that it cannot express, and raises `PeerMissing`
where a package that it needs is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._functorch import config as functorch_config

Provider = Callable[..., Any]


class PeerMissing(Exception):
    """The package of a peer is not installed; the message names it."""


def compiled(eager: Provider) -> Provider:
    """`eager` under `torch.compile`, made on its first call."""
    cache: list[Provider] = []

    def call(*tensors: Any, **inputs: Any) -> Any:
        if not cache:
            cache.append(torch.compile(eager, dynamic=False))
        # Donated buffers would let a graph run backward once; the clock runs it many times.
        with functorch_config.patch(donated_buffer=False):
            return cache[0](*tensors, **inputs)

    return call
