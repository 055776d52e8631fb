"""Comparison of a fused op with float64, and tensors with odd layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.sanitizer import Sanitizer

# Allowed relative root mean square error of an output of each type: its rounding. The interpreter
# truncates to bfloat16, in operands and in outputs.
BARS = {torch.float32: 2e-5, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-6}
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.float32, torch.float16, torch.bfloat16]
)
SEEDS = st.integers(0, 2**31 - 1)
LAYOUTS = st.sampled_from(
    ["dense", "dense", "rows apart", "transposed", "offset", "reversed storage"]
)
PADDING = st.sampled_from([None, float("nan"), float("inf"), -float("inf"), 3e4])
UPSTREAM = st.sampled_from([1.0, -0.37, 1e-3, 1e3])


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; gaps hold NaN."""
    if layout == "dense" or tensor.dim() < 2 or not tensor.numel():
        return tensor.contiguous()
    hole = float("nan") if tensor.is_floating_point() else 1
    if layout == "rows apart":
        wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 16), hole)
        view = wide[..., : tensor.shape[-1]]
    elif layout == "transposed":
        view = tensor.new_full((*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2]), hole).mT
    elif layout == "offset":
        long = tensor.new_full((tensor.numel() + 24,), hole)
        view = long[3 : 3 + tensor.numel()].view(tensor.shape)
    else:
        order = list(reversed(range(tensor.dim())))
        view = tensor.new_full([tensor.shape[axis] for axis in order], hole).permute(order)
    view.copy_(tensor)
    return view


@contextmanager
def sanitized(seed: int) -> Iterator[Sanitizer]:
    """A sanitizer for the launches of one case; it must have launched something."""
    with Sanitizer(seed) as sanitizer:
        yield sanitizer
        assert sanitizer.launches, "no kernel was launched: the reference path was taken"


def assert_written(sanitizer: Sanitizer, tensors: dict[str, Tensor]) -> None:
    """Assert that no element of an output has kept the fill value of fresh memory."""
    for name, tensor in tensors.items():
        count = sanitizer.unwritten(tensor)
        assert not count, f"{name}: {count} elements were never written"


def assert_close(name: str, found: Tensor, truth: Tensor, bar: float, floor: float = 0.0) -> None:
    """Root mean square and largest error against float64; `floor` is absolute, per element."""
    assert found.shape == truth.shape, f"{name}: shape {found.shape}, expected {truth.shape}"
    if not truth.numel():
        return
    assert truth.isfinite().all(), f"{name}: float64 is not finite"
    largest = torch.finfo(found.dtype).max
    beyond = truth.abs() > largest / 2  # rounding may leave the type's range
    right = (found * truth.sign() >= largest / 4) | ~beyond
    assert right.all(), f"{name}: {int((~right).sum())} values are not as large as they should be"
    found, truth = found.masked_fill(beyond, 0), truth.masked_fill(beyond, 0)
    size = truth.square().mean().sqrt()
    rows = truth.abs().amax(-1, keepdim=True) if truth.dim() else truth.abs()
    assert found.isfinite().all(), f"{name}: {int((~found.isfinite()).sum())} values not finite"
    error = (found.double() - truth).abs()
    unit = torch.finfo(found.dtype).eps
    # Below the normal range of a type, rounding errors are absolute.
    floor = floor + unit * torch.finfo(found.dtype).tiny
    off = error.square().mean().sqrt()
    assert off <= bar * size + floor, f"{name}: rms error {off:.3e}, size {size:.3e}, bar {bar:.1e}"
    # Finds one bad row among many good ones.
    limit = 4 * unit * truth.abs() + 2.0**-7 * rows + 16 * (bar * size + floor)
    worst = (error - limit).max()
    assert worst <= 0, f"{name}: an element is off by {worst:.3e} too much"


def gradients(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], upstream: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, leaves, [u.to(o.dtype) for u, o in zip(upstream, outputs)])
