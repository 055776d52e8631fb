"""Differentiable gather, reduce-scatter and sums over ranks, for gloo and NCCL.

Without an initialised process group, every function acts as on a single rank. All gradients are
those of the sum of the ranks' losses. The collectives that a function issues do not depend on
values, so a function that all ranks call cannot hang.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .operators import first_derivative_only

_DESCRIPTION_BYTES = 512


def is_distributed() -> bool:
    """Whether a process group is initialised."""
    return dist.is_available() and dist.is_initialized()


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Ranks in the group (None: the default group); 1 without a process group."""
    return dist.get_world_size(group) if is_distributed() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """The rank of this process in the group; 0 without a process group."""
    return dist.get_rank(group) if is_distributed() else 0


def _gather(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    out = tensor.new_empty((world_size(group) * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather_into_tensor(out, tensor.contiguous(), group=group)
    return out


def _reduced(tensor: Tensor, operation: Any, group: dist.ProcessGroup | None) -> Tensor:
    out = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, operation, group=group)
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _gather(tensor, group)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # A sum over ranks in half precision would round at every hop.
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        summands = gradient.to(dtype).contiguous()
        out = summands.new_empty((summands.shape[0] // world_size(ctx.group), *summands.shape[1:]))
        dist.reduce_scatter_tensor(out, summands, group=ctx.group)
        return out.to(gradient.dtype), None


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _reduced(tensor, dist.ReduceOp.SUM, group)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _reduced(gradient, dist.ReduceOp.SUM, ctx.group), None


def gather(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """[b, ...] of every rank as [W b, ...] in rank order; backward is a reduce-scatter (sum).

    The gradient of a half-precision tensor is summed in fp32. Integer tensors are gathered
    without a gradient. `b` must be equal on all ranks: see `check_equal_calls`.
    """
    return _Gather.apply(tensor, group) if world_size(group) > 1 else tensor


def all_reduce_sum(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum over ranks, not in place; backward sums the ranks' gradients."""
    return _AllReduceSum.apply(tensor, group) if world_size(group) > 1 else tensor


def all_reduce_max(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Elementwise maximum over ranks, not in place, without a gradient."""
    if world_size(group) == 1:
        return tensor.detach()
    return _reduced(tensor, dist.ReduceOp.MAX, group)


def all_reduce_logsumexp(lse: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """log of the sum over ranks of exp(lse), elementwise; -inf is an empty sum. Differentiable.

    Two all-reduces of the tensor's size: the maximum, then the sum relative to it, so that no
    partial sum overflows or underflows. The gradient takes one more.
    """
    if world_size(group) == 1:
        return lse
    maximum = all_reduce_max(lse, group)
    reference = maximum.masked_fill(maximum == -torch.inf, 0.0)
    return reference + torch.log(all_reduce_sum(torch.exp(lse - reference), group))


def device_of(*values: Any) -> torch.device:
    """The device of the first tensor among the values; the CPU if none is a tensor."""
    devices = (value.device for value in values if isinstance(value, Tensor))
    return next(devices, torch.device("cpu"))


def _fixed_size(text: bytes) -> bytes:
    """The text padded to _DESCRIPTION_BYTES; a longer text is cut and ends with its hash."""
    if len(text) > _DESCRIPTION_BYTES:
        end = f"... (hash {hashlib.sha256(text).hexdigest()[:16]})".encode()
        text = text[: _DESCRIPTION_BYTES - len(end)] + end
    return text.ljust(_DESCRIPTION_BYTES)


def check_equal_calls(
    name: str,
    description: str,
    *,
    device: torch.device,
    group: dist.ProcessGroup | None = None,
    problem: str | None = None,
) -> None:
    """Compare the calls that the ranks are about to make; raise the same error on all ranks.

    Collectives of unequal sizes hang or corrupt memory; this check gathers a text of fixed size.
    It waits for the other ranks. On a group with a CPU backend (gloo) it does not use the GPU.

    Args:
        name: the caller, for the message.
        description: everything that must be equal, e.g. "texts [64, 256] torch.float32".
        device: the device of the call's tensors.
        problem: the error in this rank's input, or None.

    Raises:
        ValueError: a rank has a problem, or descriptions differ; the message lists the ranks.
    """
    if world_size(group) == 1:
        if problem is not None:
            raise ValueError(f"{name}: {problem}")
        return
    text = description if problem is None else f"!{problem}"
    line = _fixed_size(text.encode())
    where = torch.device("cpu") if "gloo" in str(dist.get_backend_config(group)) else device
    sent = torch.frombuffer(bytearray(line), dtype=torch.uint8).to(where)
    received = _gather(sent, group).cpu().numpy().tobytes()
    lines = [
        received[start : start + _DESCRIPTION_BYTES].decode(errors="replace").rstrip()
        for start in range(0, len(received), _DESCRIPTION_BYTES)
    ]
    problems = [
        f"rank {place}: {text[1:]}" for place, text in enumerate(lines) if text.startswith("!")
    ]
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")
    if len(set(lines)) > 1:
        each: dict[str, list[int]] = {}
        for place, text in enumerate(lines):
            each.setdefault(text, []).append(place)
        listed = "; ".join(f"ranks {places} have {text}" for text, places in each.items())
        raise ValueError(
            f"{name}: all ranks must make the same call, but {listed}; give every rank equal "
            "dtypes and options and an equal local batch (drop the last, uneven one)"
        )


def described(tensors: dict[str, Tensor | float], **options: Any) -> str:
    """Text for `check_equal_calls`: dtypes, required gradients, numbers and options of a call.

    Numbers are compared by value. Tensors are compared by dtype only, because reading their
    values would synchronise.
    """
    kinds = {
        name: str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else float(value)
        for name, value in tensors.items()
    }
    # The collectives of backward depend on which gradients are needed.
    needed = [
        name
        for name, value in tensors.items()
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()
    ]
    compared = [f"{name} {value}" for name, value in (kinds | options).items()]
    return ", ".join((*compared, f"gradients of: {', '.join(needed) or 'nothing'}"))
