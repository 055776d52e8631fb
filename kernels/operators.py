"""Registering operators with fake implementations, and what their autograd shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
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


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Let the backward of an autograd function refuse to be differentiated itself.

    PyTorch's `once_differentiable` refuses only where an upstream gradient has a graph. With
    `create_graph=True` the upstream of a loss is a constant, so a term of the second derivative
    would be dropped without a word. Here every gradient that such a backward returns raises
    RuntimeError when it is differentiated.
    """

    @wraps(backward)
    def once(ctx: Any, *upstream: Any) -> Any:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return backward(ctx, *upstream)
        with torch.no_grad():
            found = backward(ctx, *upstream)
        gradients = found if isinstance(found, tuple) else (found,)
        name = type(ctx).__name__.removesuffix("Backward").lstrip("_")
        text = (
            f"{name}: the op has no second derivative; write the formula in plain PyTorch "
            "operators where one is needed"
        )
        refuse = torch._C._functions.DelayedError(text.encode(), len(gradients))
        marked = [None if g is None else g.detach().requires_grad_() for g in gradients]
        refusing = refuse(*marked)  # type: ignore[arg-type]
        refusing = refusing if isinstance(refusing, tuple) else (refusing,)
        outputs = tuple(None if g is None else r for g, r in zip(gradients, refusing))
        return outputs if isinstance(found, tuple) else outputs[0]

    return once


def wanted(needs: Iterable[bool], gradients: Iterable[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, None for the others."""
    return tuple(gradient if need else None for need, gradient in zip(needs, gradients))


def dense(tensor: Tensor | None) -> Tensor | None:
    """The tensor, contiguous."""
    return None if tensor is None else tensor.contiguous()
