"""Registration of operators with fake implementations, and helpers of their autograd functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVarTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def define(
    library: torch.library.Library,
    name: str,
    signature: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    devices: tuple[str, ...] = ("CPU", "CUDA"),
) -> None:
    """Add an operator for CPU (the interpreter) and CUDA; `fake` returns outputs without data.

    `devices` are dispatch keys. A number that may depend on a size must be a SymInt in the
    signature, so that one traced graph serves all sizes.
    """
    library.define(name + signature)
    for device in devices:
        library.impl(name, implementation, device)
    torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)


def without_values(tensor: Tensor) -> bool:
    """Whether the code runs to be traced: under `torch.compile` or a `FakeTensorMode`.

    Then nothing may depend on the values of a tensor.
    """
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the tensor's device.

    Entering it costs as much as a small operator, so none is entered where autocast is off.
    """
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING


_NOTHING = nullcontext()


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.number = len(inputs)
        return inputs[0].new_empty((0,))

    @staticmethod
    def backward(ctx: Any, _: Any) -> tuple[None, ...]:
        return (None,) * ctx.number


def anchor(*inputs: Tensor) -> Tensor | None:
    """An empty tensor whose graph leads to the inputs; None if no gradient is recorded.

    For autograd functions that save copies of their inputs made without a graph. Passing and saving
    the anchor too lets `first_derivative_only` raise its error for these inputs.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    return _Anchor.apply(*inputs) if any(value.requires_grad for value in inputs) else None


class _Unpacked:
    """An autograd context that unpacks its saved tensors once, as checkpointing requires."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors = ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the backward of an autograd function so that differentiating it raises an error.

    PyTorch's `once_differentiable` raises an error only if an upstream gradient has a graph. With
    `create_graph=True` the upstream gradient of a loss is a constant, so a term of the second
    derivative would be silently dropped. Here every gradient that the backward returns is connected
    to the upstream gradients and the saved tensors, and raises RuntimeError when differentiated.
    The backward reads `ctx.saved_tensors` once, as checkpointing requires.
    """

    @wraps(backward)
    def once(ctx: Any, *upstream: Any) -> Any:
        if torch.compiler.is_compiling():
            return backward(ctx, *upstream)
        if not torch.is_grad_enabled():
            return backward(ctx, *upstream)
        unpacked = _Unpacked(ctx)
        with torch.no_grad():
            found = backward(unpacked, *upstream)
        gradients = found if isinstance(found, tuple) else (found,)
        name = type(ctx).__name__.removesuffix("Backward").lstrip("_")
        text = (
            f"{name}: the op has no second derivative; write the formula in plain PyTorch "
            "operators where one is needed"
        )
        sources = [
            value
            for value in (*upstream, *unpacked.saved_tensors)
            if value is not None and value.requires_grad
        ]
        marked = [None if g is None else g.detach().requires_grad_() for g in gradients]
        call = (*marked, *sources)
        refusing = torch._C._functions.DelayedError(text.encode(), len(call))(*call)  # type: ignore[arg-type]
        refusing = refusing if isinstance(refusing, tuple) else (refusing,)
        outputs = tuple(None if g is None else r for g, r in zip(gradients, refusing))
        return outputs if isinstance(found, tuple) else outputs[0]

    return once


Tensors = TypeVarTuple("Tensors")


def distinct(*tensors: *Tensors) -> tuple[*Tensors]:
    """The tensors; under `torch.compile`, repeated tensors are replaced by views.

    Dynamo rejects an autograd function that takes the same tensor twice. None entries are kept.
    """
    if not torch.compiler.is_compiling():
        return tensors
    given: Sequence[Any] = tensors  # type: ignore[assignment]
    found: list[Any] = []
    for place, tensor in enumerate(given):
        again = tensor is not None and any(tensor is other for other in given[:place])
        found.append(tensor.view_as(tensor) if again else tensor)
    return tuple(found)  # type: ignore[return-value]


def gradient_buffers(needs: Iterable[bool], inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Uninitialised gradients of the inputs; of shape [0] where not needed."""
    return tuple(
        torch.empty_like(value) if need else value.new_empty((0,))
        for need, value in zip(needs, inputs)
    )


def wanted(needs: Iterable[bool], gradients: Iterable[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, None for the others."""
    return tuple([gradient if need else None for need, gradient in zip(needs, gradients)])


def dense(tensor: Tensor | None) -> Tensor | None:
    """The tensor, contiguous; None stays None."""
    return None if tensor is None else tensor.contiguous()
