"""Registering operators with fake implementations, and what their autograd shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def define(
    library: torch.library.Library,
    name: str,
    signature: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    """Add an operator for CPU (the interpreter) and CUDA; `fake` makes its outputs' metadata."""
    library.define(name + signature)
    for device in ("CPU", "CUDA"):
        library.impl(name, implementation, device)
    torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)


def wanted(needs: Iterable[bool], gradients: Iterable[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, None for the others."""
    return tuple(gradient if need else None for need, gradient in zip(needs, gradients))


def dense(tensor: Tensor | None) -> Tensor | None:
    """The tensor, contiguous."""
    return None if tensor is None else tensor.contiguous()
