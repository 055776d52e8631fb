"""The temporal ops: loss, pooled segments and gradients against float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch.nn.functional import normalize

from svilm_fast.kernels import segment_pool, temporal_bce

from ..engine import Target
from ..numerics import (
    BARS,
    DTYPES,
    LAYOUTS,
    PADDING,
    SEEDS,
    UPSTREAM,
    assert_close,
    assert_written,
    generator_of,
    gradients,
    laid_out,
    sanitized,
)

_FAR = (-(2**63), -(2**32), 2**32, 2**32 + 1, 2**63 - 1, 2**31, -1)


@dataclass(frozen=True)
class Bce:
    batch: int
    segments: int
    width: int
    dtype: torch.dtype
    loss: str
    temperature: float
    pasted: float
    keep: float | None
    confident: bool
    padding: float | None
    upstream: float
    layout: str
    seed: int


BCE_CASES = st.builds(
    Bce,
    batch=st.integers(1, 6),
    segments=st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 70])),
    width=st.one_of(st.integers(1, 80), st.sampled_from([128, 129, 260])),
    dtype=DTYPES,
    loss=st.sampled_from(["bce", "mse"]),
    temperature=st.sampled_from([0.02, 0.1, 1.0, 30.0]),
    pasted=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    keep=st.sampled_from([None, 0.8, 0.3, 0.0]),
    confident=st.booleans(),
    padding=PADDING,
    upstream=UPSTREAM,
    layout=LAYOUTS,
    seed=SEEDS,
)


def check_bce(case: Bce, folder: Path) -> None:
    generator = generator_of(case.seed)
    shape = (case.batch, case.segments)
    paste = torch.rand(shape, generator=generator) < case.pasted
    z = torch.randn(*shape, case.width, generator=generator)
    if case.confident:
        sides = torch.randn(2, case.width, generator=generator)
        z = 0.1 * z + torch.where(paste[..., None], sides[0], sides[1])
    z = normalize(z, dim=-1).to(case.dtype)
    hidden, mask = z.clone(), None
    if case.keep is not None:
        mask = torch.rand(shape, generator=generator) < case.keep
        if case.padding is not None:
            hidden[~mask] = case.padding
    settings = {"segment_mask": mask, "temperature": case.temperature, "loss": case.loss}
    upstream = [torch.tensor(case.upstream)]
    with sanitized(case.seed) as sanitizer:
        leaf = laid_out(hidden, case.layout).requires_grad_()
        loss = temporal_bce(leaf, paste, **settings, backend="fused")
        (found,) = gradients([loss], [leaf], upstream)
        assert_written(sanitizer, {"loss": loss, "segments": found})
    exact = z.double().requires_grad_()
    truth = temporal_bce(exact, paste, **settings, backend="reference")
    (wanted,) = gradients([truth], [exact], upstream)
    # Logits up to 2 / temperature are rounded in float32.
    steep = 2.0**-22 / case.temperature
    assert_close("loss", loss.detach(), truth.detach(), 2e-5, steep)
    tiny = steep * abs(case.upstream) / case.temperature / (case.batch * case.segments)
    assert_close("gradient", found, wanted, BARS[case.dtype] + 2 * steep, tiny)


@dataclass(frozen=True)
class Pool:
    batch: int
    length: int
    width: int
    segments: int
    dtype: torch.dtype
    shared: bool
    index_dtype: torch.dtype
    far: bool
    keep: float | None
    padding: float | None
    upstream: float
    layout: str
    seed: int


POOL_CASES = st.builds(
    Pool,
    batch=st.integers(1, 4),
    length=st.one_of(st.integers(1, 80), st.sampled_from([127, 128, 129, 200])),
    width=st.one_of(st.integers(1, 80), st.sampled_from([128, 129, 260])),
    segments=st.one_of(st.integers(1, 17), st.sampled_from([63, 64])),
    dtype=DTYPES,
    shared=st.booleans(),
    index_dtype=st.sampled_from([torch.int64, torch.int32]),
    far=st.booleans(),
    keep=st.sampled_from([None, 0.8, 0.2, 0.0]),
    padding=PADDING,
    upstream=UPSTREAM,
    layout=LAYOUTS,
    seed=SEEDS,
)


def check_pool(case: Pool, folder: Path) -> None:
    generator = generator_of(case.seed)
    shape = (case.batch, case.length)
    index = torch.randint(-1, case.segments + 1, shape, generator=generator)
    if case.far:
        far = torch.tensor(_FAR)[torch.randint(0, len(_FAR), shape, generator=generator)]
        if case.index_dtype == torch.int32:
            far = far.clamp(-(2**31), 2**31 - 1)
        index = torch.where(torch.rand(shape, generator=generator) < 0.3, far, index)
    index = (index[0] if case.shared else index).to(case.index_dtype)
    mask = None
    if case.keep is not None:
        mask = torch.rand(shape, generator=generator) < case.keep
    tokens = (1 + torch.randn(*shape, case.width, generator=generator)).to(case.dtype)
    places = index.expand(shape)
    absent = (places < 0) | (places >= case.segments)
    if mask is not None:
        absent |= ~mask
    hidden = tokens.clone()
    if case.padding is not None:
        hidden[absent] = case.padding
    weights = torch.randn(case.batch, case.segments, case.width, generator=generator)
    weights = (case.upstream * weights).to(case.dtype)
    with sanitized(case.seed) as sanitizer:
        leaf = laid_out(hidden, case.layout).requires_grad_()
        pooled, present = segment_pool(leaf, index, case.segments, token_mask=mask, backend="fused")
        (found,) = gradients([pooled], [leaf], [weights])
        assert_written(sanitizer, {"pooled": pooled, "gradient": found})
    # Independent of the reference: the mean of each segment separately.
    exact = tokens.double()
    member = (places[:, None] == torch.arange(case.segments)[:, None]) & ~absent[:, None]
    counts = member.sum(-1)
    assert torch.equal(present, counts > 0), "other segments are present"
    truth = torch.stack(
        [
            torch.stack([rows[part].sum(0) / max(int(part.sum()), 1) for part in parts])
            for rows, parts in zip(exact, member)
        ]
    )
    assert_close("pooled", pooled.detach(), truth, BARS[case.dtype])
    shares = member.double() / counts.clamp(min=1)[..., None]
    assert_close("gradient", found, shares.mT @ weights.double(), BARS[case.dtype])
    assert not found[absent].any(), "tokens of no segment have a gradient"


OPTIONS = {"full": 1000, "short": 12, "batch": 50, "seconds": 60.0, "shrink": False}
BCE = Target("temporal_bce", BCE_CASES, check_bce, **OPTIONS)
POOL = Target("segment_pool", POOL_CASES, check_pool, **OPTIONS)
