"""The numerics protocol of the temporal ops: one call against the float64 oracle."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from svilm_fast.kernels import segment_pool, temporal_bce
from tests.bars import within

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative root mean square error; bf16 is twice its rounding where the interpreter truncates.
BARS = {
    torch.float32: 2e-5,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8 if DEVICE == "cuda" else 2.0**-7,
}


def assert_close(name: str, actual: torch.Tensor, truth: torch.Tensor, bar: float) -> None:
    """Root mean square error against float64, or half a step below the type's normal numbers."""
    assert actual.isfinite().all(), f"{name} is not finite"
    error = (actual.double() - truth).square().mean().sqrt()
    floor = torch.finfo(actual.dtype).eps * torch.finfo(actual.dtype).tiny / 2
    within(error, bar * truth.square().mean().sqrt() + floor, f"{name}, root mean square")


@dataclass(frozen=True)
class BCE:
    """One call of `temporal_bce`."""

    dtype: torch.dtype = torch.float32
    loss: str = "bce"
    batch: int = 5
    segments: int = 7
    width: int = 40
    temperature: float = 0.1
    masked: bool = True
    confident: bool = False
    seed: int = 0

    def make(self) -> dict:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.segments)
        paste = torch.rand(shape, generator=generator) < 0.5
        paste[0] = True
        z = torch.randn(*shape, self.width, generator=generator)
        if self.confident:
            sides = torch.randn(2, self.width, generator=generator)
            z = 0.1 * z + torch.where(paste[..., None], sides[0], sides[1])
        valid = torch.rand(shape, generator=generator) < 0.8
        return {
            "segments": F.normalize(z, dim=-1).to(DEVICE, self.dtype),
            "paste_mask": paste.to(DEVICE),
            "segment_mask": valid.to(DEVICE) if self.masked else None,
            "temperature": self.temperature,
            "loss": self.loss,
        }


@dataclass(frozen=True)
class Pool:
    """One call of `segment_pool`; `far`: indices beyond 32 bits, NaN where no segment is."""

    dtype: torch.dtype = torch.float32
    batch: int = 2
    length: int = 75
    width: int = 72
    segments: int = 5
    masked: bool = True
    shared: bool = False
    far: bool = False
    seed: int = 0

    def make(self) -> dict:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.length)
        index = torch.randint(-1, self.segments + 1, shape, generator=generator)
        keep = torch.rand(shape, generator=generator) < 0.8
        tokens = 1 + torch.randn(*shape, self.width, generator=generator)
        if self.far:
            # Equal to segments in their low 32 bits; what has no segment may hold anything.
            index = torch.where(index % 2 == 1, index + 2**33, index)
            absent = (index < 0) | (index >= self.segments) | (~keep & self.masked)
            tokens[absent] = float("nan")
        return {
            "tokens": tokens.to(DEVICE, self.dtype),
            "segment_index": (index[0].int() if self.shared else index).to(DEVICE),
            "num_segments": self.segments,
            "token_mask": keep.to(DEVICE) if self.masked else None,
        }


@pytest.fixture
def check_bce(poisoned_memory):
    """`check(BCE(...))`: loss and gradient obey the protocol, or AssertionError."""

    def check(regime: BCE) -> None:
        values, gradients = [], []
        for backend, dtype in (("fused", regime.dtype), ("reference", torch.float64)):
            call = regime.make()
            call["segments"] = call["segments"].to(dtype).requires_grad_()
            value = temporal_bce(**call, backend=backend)
            values.append(value)
            gradients += torch.autograd.grad(3 * value, call["segments"])
        assert values[0].dtype == torch.float32
        assert values[0].dim() == 0
        assert_close("loss", values[0], values[1], 2e-5)
        assert_close("segments", gradients[0], gradients[1], BARS[regime.dtype])

    check.Regime = BCE
    return check


@pytest.fixture
def check_pool(poisoned_memory):
    """`check(Pool(...))`: segments, their mask and the gradient obey the protocol."""

    def check(regime: Pool) -> None:
        results, gradients = [], []
        for backend, dtype in (("fused", regime.dtype), ("reference", torch.float64)):
            call = regime.make()
            call["tokens"] = call["tokens"].to(dtype).requires_grad_()
            pooled, present = segment_pool(**call, backend=backend)
            results.append((pooled, present))
            ramp = torch.linspace(-1, 2, pooled.numel(), device=DEVICE).view(pooled.shape)
            upstream = ramp.to(regime.dtype).to(dtype)
            gradients += torch.autograd.grad(pooled, call["tokens"], upstream)
        (pooled, present), (truth, true_present) = results
        assert torch.equal(present, true_present)
        assert_close("segments", pooled, truth, BARS[regime.dtype])
        assert_close("tokens", gradients[0], gradients[1], BARS[regime.dtype])

    check.Regime = Pool
    return check
