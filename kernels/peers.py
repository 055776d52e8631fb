"""Peers: other implementations that an op is compared with, defined in the op's `peers.py`.

A peer takes the keyword arguments that the op's `make_inputs` returns, and returns the first output
of the op. It returns `NotImplemented` for a case that it does not support, and raises `PeerMissing`
if a package that it needs is not installed.
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
    """`eager` under `torch.compile`, compiled on the first call."""
    cache: list[Provider] = []

    def call(*tensors: Any, **inputs: Any) -> Any:
        if not cache:
            cache.append(torch.compile(eager, dynamic=False))
        # With donated buffers a graph runs backward only once; a measurement runs it many times.
        with functorch_config.patch(donated_buffer=False):
            return cache[0](*tensors, **inputs)

    return call
