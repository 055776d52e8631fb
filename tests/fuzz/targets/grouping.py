"""Grouping: outputs and gradients against float64, near-ties and padding included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st

from svilm_fast.kernels import grouping
from svilm_fast.kernels.grouping.reference import gumbel_noise

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


@dataclass(frozen=True)
class Case:
    mode: str
    batch: int
    length: int
    width: int
    groups: int
    dtype: torch.dtype
    temperature: float
    eps: float
    sharpness: float
    bias: str | None
    ties: bool
    keep: float | None
    padding: float | None
    dropped: bool
    upstream: float
    layout: str
    seed: int


CASES = st.builds(
    Case,
    mode=st.sampled_from(["gumbel", "gumbel", "hard", "soft"]),
    batch=st.integers(1, 3),
    length=st.one_of(st.integers(1, 33), st.integers(1, 33), st.sampled_from([64, 65, 90])),
    width=st.sampled_from([16, 32, 48, 64, 80, 96, 144, 160, 192]),
    groups=st.one_of(st.integers(1, 9), st.integers(1, 17), st.sampled_from([33, 64])),
    dtype=DTYPES,
    temperature=st.sampled_from([0.05, 0.2, 1.0, 3.0]),
    eps=st.sampled_from([1e-3, 0.3, 1.0]),
    sharpness=st.sampled_from([0.0, 1.0, 4.0, 30.0]),
    bias=st.sampled_from([None, "sample", "shared"]),
    ties=st.booleans(),
    keep=st.sampled_from([None, 0.8, 0.2, 0.0]),
    padding=PADDING,
    dropped=st.booleans(),
    upstream=UPSTREAM,
    layout=LAYOUTS,
    seed=SEEDS,
)


def check(case: Case, folder: Path) -> None:
    generator = generator_of(case.seed)
    b, length, c, g = case.batch, case.length, case.width, case.groups

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    queries = (normal(b, g, c) * case.sharpness * c**-0.5).to(case.dtype)
    if case.ties:
        queries = queries[:, torch.arange(g) // 2]
    tokens = (normal(b, length, c) + 0.5 * normal(b, 1, c)).to(case.dtype)
    bias = {"sample": 0.3 * normal(b, g), "shared": 0.3 * normal(g), None: None}[case.bias]
    mask = None
    hidden = tokens.clone()
    if case.keep is not None:
        mask = torch.rand(b, length, generator=generator) < case.keep
        if case.padding is not None:
            hidden[~mask] = case.padding
    settings = {
        "mode": case.mode,
        "temperature": case.temperature,
        "eps": case.eps,
        "seeds": torch.randint(-(2**62), 2**62, (b,), generator=generator),
        "token_mask": mask,
    }
    ids = torch.arange(length).expand(b, length)
    if case.dropped:
        ids = torch.rand(b, 3 * length, generator=generator).argsort(1)[:, :length]
        settings["token_ids"] = ids
    d_pooled = (case.upstream * (1 + 0.5 * normal(b, g, c))).to(case.dtype)
    d_counts = case.upstream * normal(b, g)
    with sanitized(case.seed) as sanitizer:
        leaves = [laid_out(queries, case.layout), laid_out(hidden, case.layout)]
        leaves += [] if bias is None else [bias.clone()]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        out = grouping(*leaves, **settings, backend="fused")
        found = gradients([out.pooled, out.counts], leaves, [d_pooled, d_counts])
        outputs = {"pooled": out.pooled, "counts": out.counts, "index": out.index}
        assert_written(sanitizer, outputs)
        assert_written(sanitizer, dict(zip(("queries", "tokens", "bias"), found)))

    exact = [queries.double(), tokens.double(), *([] if bias is None else [bias.double()])]
    exact = [leaf.requires_grad_() for leaf in exact]
    logits, noisy, pooled, counts = _exact(case, exact, settings, ids, out.index)
    _check_index(case, out.index, noisy, mask)
    if case.mode != "soft":
        assert torch.equal(out.counts.double(), counts.detach()), "counts do not match the index"
    # The logits are rounded in float32 before the softmax divides them by the temperature.
    steep = 2.0**-22 * max(1.0, float(logits.detach().abs().max())) / case.temperature
    soft = steep if case.mode == "soft" else 0.0
    assert_close("counts", out.counts.detach(), counts.detach(), 2e-5 + soft, soft)
    bar = BARS[case.dtype] * (1 if case.dtype == torch.float32 else 2)
    assert_close("pooled", out.pooled.detach(), pooled.detach(), bar + soft)
    upstream = d_pooled.double(), d_counts.double()
    chance = torch.softmax(noisy / case.temperature, dim=-1).detach()
    pieces = _Pieces(case, exact, chance, out.index, counts.detach(), pooled.detach(), *upstream)
    truths = gradients([pooled, counts], exact, upstream)
    for truth, again in zip(truths, pieces.gradients(pieces.shares, pieces.offsets)):
        torch.testing.assert_close(again, truth, rtol=1e-9, atol=1e-9 * pieces.terms)
    # Forward rounds pooled tokens to the tokens' type; backward rounds the shares and the gradient
    # of the logits. The change that the first two roundings make is a sample of this error.
    unit = 0.0 if case.dtype == torch.float32 else torch.finfo(case.dtype).eps
    rounded = pieces.gradients(*pieces.rounded())
    # The gradient of a logit far below the largest share is subnormal.
    smallest = unit * torch.finfo(case.dtype).tiny * float(pieces.shares.abs().max())
    off = (
        smallest + unit * pieces.d_logits_size + (2.0**-22 + steep) * pieces.terms
    ) / case.temperature
    reach = {
        "queries": length**0.5,
        "tokens": max(case.sharpness, 0.1) * (g / c) ** 0.5,
        "bias": length,
    }
    for name, gradient, truth, other in zip(reach, found, truths, rounded):
        floor = 4 * float((other - truth).square().mean().sqrt()) + off * reach[name]
        floor += torch.finfo(torch.float32).tiny
        assert_close(f"gradient of {name}", gradient, truth, bar + 2 * steep, floor)
    if mask is not None:
        assert not found[1][~mask].any(), "masked tokens have a gradient"


class _Pieces:
    """The parts of the backward pass in float64 (README of the op, "Backward")."""

    def __init__(self, case, leaves, chance, index, counts, pooled, d_pooled, d_counts) -> None:
        self.case, self.leaves = case, [leaf.detach() for leaf in leaves]
        present = (index >= 0)[..., None]
        self.chance = chance * present
        self.assignment = self.chance
        if case.mode != "soft":
            one_hot = torch.nn.functional.one_hot(index.long().clamp(min=0), case.groups)
            self.assignment = one_hot.double() * present
        self.shares = d_pooled / (counts + case.eps)[..., None]
        self.offsets = d_counts - (self.shares * pooled).sum(-1)
        width = d_pooled.shape[-1]
        self.pooled, self.d_counts = pooled, d_counts
        sizes = self.shares.square().mean(-1).sqrt() * width**0.5 + self.offsets.abs()
        # Typical magnitude of the terms whose difference is the gradient of the logits.
        self.terms = float((self.chance @ sizes[..., None]).square().mean().sqrt())
        d_logits = self._d_logits(self.shares, self.offsets)
        self.d_logits_size = float(d_logits.square().mean().sqrt())

    def rounded(self):
        """Shares and offsets rounded to the tokens' type, scaled as in `prepare`."""
        dtype = self.case.dtype
        largest = self.shares.abs().amax((1, 2), keepdim=True).clamp(min=2.0**-100)
        scale = torch.exp2(torch.floor(torch.log2(largest)))
        pooled = self.pooled.to(dtype).double()
        offsets = self.d_counts - (self.shares * pooled).sum(-1)
        return (self.shares / scale).to(dtype).double() * scale, offsets

    def _d_logits(self, shares, offsets):
        d_assignment = self.leaves[1] @ shares.mT + offsets[:, None]
        mean = (self.chance * d_assignment).sum(-1, keepdim=True)
        return self.chance * (d_assignment - mean)

    def gradients(self, shares, offsets):
        """Gradients of queries, tokens and, if given, the bias."""
        queries, tokens, *bias = self.leaves
        d_logits = self._d_logits(shares, offsets) / self.case.temperature
        found = [d_logits.mT @ tokens, d_logits @ queries + self.assignment @ shares]
        if bias:
            found.append(d_logits.sum(1) if bias[0].dim() == 2 else d_logits.sum((0, 1)))
        return found


def _exact(case, leaves, settings, ids, index):
    """Float64 result for the kernel's own choice of groups, with the gradient of the softmax."""
    queries, tokens = leaves[:2]
    logits = tokens @ queries.mT
    if len(leaves) == 3:
        bias = leaves[2]
        logits = logits + (bias[:, None] if bias.dim() == 2 else bias)
    noisy = logits
    if case.mode == "gumbel":
        noisy = logits + gumbel_noise(settings["seeds"], ids, case.groups)
    soft = torch.softmax(noisy / case.temperature, dim=-1)
    assignment = soft
    if case.mode != "soft":
        chosen = torch.nn.functional.one_hot(index.long().clamp(min=0), case.groups).double()
        assignment = chosen + (soft - soft.detach())
    if settings["token_mask"] is not None:
        assignment = assignment * settings["token_mask"][..., None]
    counts = assignment.sum(1)
    pooled = assignment.mT @ tokens / (counts + case.eps)[..., None]
    return logits, noisy, pooled, counts


def _check_index(case, index, noisy, mask) -> None:
    """Assert that every token is in a group with the largest logit, up to float32 rounding."""
    noisy = noisy.detach()
    present = torch.ones_like(index, dtype=torch.bool) if mask is None else mask
    assert (index[~present] == -1).all(), "a masked token has a group"
    chosen = index.long()
    assert ((chosen >= 0) & (chosen < case.groups))[present].all(), "an index out of range"
    own = noisy.gather(-1, chosen.clamp(min=0)[..., None])[..., 0]
    behind = (noisy.amax(-1) - own)[present]
    allowed = 2.0**-20 * noisy.abs().amax(-1)[present] + 1e-5
    assert (behind <= allowed).all(), f"a token's group is not the best by {behind.max():.2e}"


TARGET = Target("grouping", CASES, check, full=1000, short=3, batch=50, seconds=60, shrink=False)
