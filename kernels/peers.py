"""Peers: other implementations that an op is compared with, defined in the op's `peers.py`.

A peer takes the keyword arguments that the op's `make_inputs` returns, and returns the first output
of the op, or what its `Peer` says. It returns `NotImplemented` for a case that it does not support,
and raises `CannotRun` if a package or device that it needs is not there.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch import config as functorch_config

Provider = Callable[..., Any]


class CannotRun(Exception):
    """A path or peer cannot run this call on this machine; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A peer that does not give exactly what its op gives; it is called like every other peer.

    Attributes:
        call: the peer.
        differs: how its result differs from the op's, for tables and records.
        reference: the oracle of what it computes, in plain PyTorch with the op's arguments; None
            if the op's own oracle holds.
        same_floor: whether it needs the products of the op, so that the op's floor holds.
    """

    call: Provider
    differs: str
    reference: Provider | None = None
    same_floor: bool = True

    def __call__(self, **inputs: Any) -> Any:
        return self.call(**inputs)


def module_of(package: str, module: str) -> Any:
    """The imported module of a peer's package (the name on the index).

    Raises:
        CannotRun: the package is not installed.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise CannotRun(f"{package} is not installed")
    return importlib.import_module(module)


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
