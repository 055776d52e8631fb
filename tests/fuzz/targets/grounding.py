"""Grounding: scores, loss and all gradients against float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch.nn.functional import normalize

from svilm_fast.kernels import grounding_loss, grounding_scores, matrix_infonce

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
    op: str
    videos: int
    captions: int
    groups: int
    nouns: int
    dim: int
    dtype: torch.dtype
    beta: float
    scale: float
    kind: str
    share: float
    padding: float | None
    upstream: float
    layout: str
    workspace: int | None
    seed: int


CASES = st.builds(
    Case,
    op=st.sampled_from(["loss", "loss", "scores", "matrix"]),
    videos=st.one_of(st.integers(1, 20), st.sampled_from([31, 40])),
    captions=st.integers(1, 30),
    groups=st.integers(1, 20),
    nouns=st.integers(1, 5),
    dim=st.sampled_from([1, 7, 8, 16, 24, 48, 64, 80]),
    dtype=DTYPES,
    beta=st.sampled_from([0.0, 0.5, 1.0, 10.0, 60.0]),
    scale=st.sampled_from([0.5, 6.0, 20.0, 100.0, 1000.0]),
    kind=st.sampled_from(["random", "random", "confident", "duplicates", "zero", "long"]),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    padding=PADDING,
    upstream=UPSTREAM,
    layout=LAYOUTS,
    workspace=st.sampled_from([None, None, 1, 2048]),
    seed=SEEDS,
)


def _inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = generator_of(case.seed)
    captions = case.captions if case.op == "scores" else case.videos

    def unit(*shape: int) -> torch.Tensor:
        return normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)

    groups = unit(case.videos, case.groups, case.dim)
    nouns = unit(captions, case.nouns, case.dim)
    if case.kind == "confident" and captions == case.videos:
        nouns = normalize(groups[:, :1] + 0.05 * nouns, dim=-1)
    elif case.kind == "duplicates":
        groups, nouns = groups[:1].expand_as(groups), nouns[:1].expand_as(nouns)
    elif case.kind == "zero":
        groups[0], nouns[0, 0] = 0, 0
    elif case.kind == "long":
        groups, nouns = groups * 1.15, nouns * 1.15
    mask = torch.rand(captions, case.nouns, generator=generator) < case.share
    return groups.to(case.dtype), nouns.to(case.dtype), mask


def _call(case: Case, tensors: list[torch.Tensor], mask: torch.Tensor, backend: str):
    groups, nouns, beta, scale = tensors
    options = {"workspace_bytes": case.workspace, "backend": backend}
    if case.op == "loss":
        return grounding_loss(groups, nouns, mask, beta, scale, **options)
    return grounding_scores(groups, nouns, mask, beta, **options)


def check(case: Case, folder: Path) -> None:
    if case.op == "matrix":
        _check_matrix(case)
    else:
        _check_scores(case)


def _check_scores(case: Case) -> None:
    groups, nouns, mask = _inputs(case)
    hidden = nouns.clone()
    if case.padding is not None:
        hidden[~mask] = case.padding
    scalars = [torch.tensor(case.beta), torch.tensor(case.scale)]
    used = 4 if case.op == "loss" else 3
    with sanitized(case.seed) as sanitizer:
        leaves = [laid_out(groups, case.layout), laid_out(hidden, case.layout), *scalars]
        leaves = [
            leaf.clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves
        ]
        out = _call(case, leaves, mask, "fused")
        weights = case.upstream * (
            1 + 0.5 * torch.randn(out.shape, generator=generator_of(case.seed + 1))
        )
        found = gradients([out], leaves[:used], [weights])
        assert_written(sanitizer, {"output": out, "groups": found[0], "nouns": found[1]})
    exact = [t.double().requires_grad_() for t in (groups, nouns, *scalars)]
    truth = _call(case, exact, mask, "reference")
    wanted = gradients([truth], exact[:used], [weights.double()])
    logit = case.scale if case.op == "loss" else 1.0
    assert_close("output", out.detach(), truth.detach(), 2e-5, 2.0**-21 * max(1.0, logit / 8))
    # Exponentials in a saturated softmax have the rounding error of their exponent.
    bar = BARS[case.dtype] + 2.0**-21 * (case.beta + logit)
    reach = abs(case.upstream) * logit / (len(groups) if case.op == "loss" else 1)
    # Terms of both signs cancel if captions are alike or pairs confident. Each was rounded, and
    # equal terms equally, so their rounding errors do not average out.
    unit = 2.0**-22 if case.dtype == torch.float32 else BARS[case.dtype]
    floor = (unit + 2.0**-22 * logit) * reach
    for name, gradient, expected in zip(("groups", "nouns"), found, wanted):
        assert_close(f"gradient of the {name}", gradient, expected, bar, floor)
    assert not found[1][~mask].any(), "absent nouns have a gradient"
    # The error of a probability is the rounding of its logit.
    known = (2.0**-22 + 2.0**-24 * logit) * abs(case.upstream)
    off = (found[2].double() - wanted[2]).abs()
    bar = known * logit if case.op == "loss" else 1e-4 * abs(case.upstream) * out.numel()
    assert off <= 2.0**-20 * wanted[2].abs() + bar, f"gradient of beta: {off:.2e}"
    if used == 4:
        off = (found[3].double() - wanted[3]).abs()
        assert off <= 2.0**-20 * wanted[3].abs() + known, f"of the scale: {off:.2e}"


def _check_matrix(case: Case) -> None:
    generator = generator_of(case.seed)
    scores = torch.randn(case.videos, case.videos, generator=generator)
    if case.kind == "confident":
        scores += 5 * torch.eye(case.videos)
    elif case.kind == "duplicates":
        scores = scores[:1].expand_as(scores).clone()
    elif case.kind == "long":
        scores = scores * 10 + 100
    valid = torch.rand(case.videos, generator=generator) < case.share
    valid_here = None if case.share == 1.0 else valid
    with sanitized(case.seed) as sanitizer:
        leaves = [laid_out(scores, case.layout), torch.tensor(case.scale)]
        leaves = [
            leaf.clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves
        ]
        loss = matrix_infonce(*leaves, valid=valid_here, backend="fused")
        found = gradients([loss], leaves, [torch.tensor(case.upstream)])
        assert_written(sanitizer, {"loss": loss, "scores": found[0]})
    exact = [scores.double().requires_grad_(), torch.tensor(case.scale).double().requires_grad_()]
    truth = matrix_infonce(*exact, valid=valid_here, backend="reference")
    wanted = gradients([truth], exact, [torch.tensor(case.upstream)])
    # A logit is accurate only to half a unit in its last place.
    largest = case.scale * float(scores.abs().max())
    bar = 2e-6 * max(10.0, largest)
    assert_close("loss", loss.detach(), truth.detach(), 2e-5, 2.0**-22 * max(1.0, largest))
    # A probability near 1 is accurate to half a unit in its last place.
    tiny = 2.0**-24 * abs(case.upstream) * case.scale / case.videos
    assert_close("gradient of the scores", found[0], wanted[0], bar, tiny)
    reach = float((wanted[0] * exact[0]).abs().sum()) / case.scale + 0.1 * abs(case.upstream)
    off = float((found[1].double() - wanted[1]).abs())
    assert off <= bar * (reach + abs(float(wanted[1]))), f"gradient of the scale: {off:.2e}"


TARGET = Target("grounding", CASES, check, full=1000, short=6, batch=50, seconds=60, shrink=False)
