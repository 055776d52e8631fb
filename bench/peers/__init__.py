"""What the ops are measured against: each module maps provider names to functions of the inputs.

A provider takes the keyword arguments that the op's `make_inputs` gives and returns the op's first
output. It returns `NotImplemented` for a case that it cannot express, and raises `Skipped` where a
package that it needs is not there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch._functorch import config as functorch_config

Provider = Callable[..., Any]
# Names of providers that are not this project's own.
PEERS = frozenset({"eager", "compile", "inf_cl", "open_clip"})


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


def peers(op: str) -> dict[str, Provider]:
    """The providers of one op by name."""
    return dict(importlib.import_module(f"{__name__}.{op}").PROVIDERS)
