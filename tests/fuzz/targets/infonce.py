"""InfoNCE: loss, partial sums and all gradients of one block against float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch.nn.functional import normalize

from svilm_fast.kernels import infonce
from svilm_fast.kernels.infonce import infonce_partials

from ..engine import Target
from ..numerics import (
    BARS,
    DTYPES,
    LAYOUTS,
    SEEDS,
    UPSTREAM,
    assert_close,
    assert_written,
    generator_of,
    gradients,
    laid_out,
    sanitized,
)

SIZES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 129, 140]))


@dataclass(frozen=True)
class Case:
    rows: int
    extra_columns: int
    offset: int
    dim: int
    dtype: torch.dtype
    scale: float
    distance: float | None
    kind: str
    ids: int | None
    mode: str
    partials: bool
    upstream: float
    layout: str
    workspace: int | None
    seed: int


CASES = st.builds(
    Case,
    rows=SIZES,
    extra_columns=st.sampled_from([0, 0, 0, 1, 7, 66]),
    offset=st.integers(-3, 66),
    dim=st.sampled_from([16, 32, 48, 64, 80, 128, 144]),
    dtype=DTYPES,
    scale=st.sampled_from([0.5, 1.0, 1 / 0.07, 30.0, 100.0, 1000.0]),
    distance=st.sampled_from([None, None, 2.4, 1.0, 0.8, 0.1]),
    kind=st.sampled_from(["plain", "plain", "duplicates", "opposite", "one row", "zero row"]),
    ids=st.sampled_from([None, None, 1, 3, 20, 2**40]),
    mode=st.sampled_from(["exclude", "share"]),
    partials=st.booleans(),
    upstream=UPSTREAM,
    layout=LAYOUTS,
    workspace=st.sampled_from([None, None, 1, 4096]),
    seed=SEEDS,
)


def _inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    generator = generator_of(case.seed)
    columns = case.rows + case.extra_columns

    def unit(count: int) -> torch.Tensor:
        rows = torch.randn(count, case.dim, generator=generator, dtype=torch.float64)
        return normalize(rows, dim=1)

    videos, texts = unit(case.rows), unit(columns)
    if case.distance is not None:
        texts[: case.rows] = normalize(videos + case.distance * texts[: case.rows], dim=1)
    if case.kind == "duplicates":
        videos = videos[torch.arange(case.rows) // 2]
        texts = texts[torch.arange(columns) // 2]
    elif case.kind == "opposite":
        common = videos[:1].clone()
        videos = normalize(common + 0.5 * videos, dim=1)
        texts = -normalize(common + 0.5 * texts, dim=1)
    elif case.kind == "one row":
        videos, texts = videos[:1].repeat(case.rows, 1), texts[:1].repeat(columns, 1)
    elif case.kind == "zero row":
        videos[0] = 0
    return videos.to(case.dtype), texts.to(case.dtype)


def check(case: Case, folder: Path) -> None:
    videos, texts = _inputs(case)
    rows, columns = len(videos), len(texts)
    # A block needs at least one pair; partial sums may have none.
    square = rows == columns
    offset = case.offset if case.partials else case.offset % (columns - rows + 1)
    settings: dict = {"pair_mode": case.mode, "diagonal_offset": offset}
    if case.mode == "share":
        settings["diagonal_offset"] = offset = 0
        if not square:
            settings["pair_mode"] = "exclude"
    ids: tuple[torch.Tensor, torch.Tensor] | None = None
    if case.ids is not None:
        generator = generator_of(case.seed + 1)
        both = torch.randint(-case.ids, case.ids + 1, (max(rows, columns),), generator=generator)
        ids = (both[:rows], both[:columns])
    if case.partials and ids is not None:
        settings |= {"video_ids": ids[0], "text_ids": ids[1]}
    elif ids is not None:
        settings["pair_ids"] = ids if not square else ids[0]
    function = infonce_partials if case.partials else infonce
    generator = generator_of(case.seed + 2)
    outcomes = []
    for dtype, backend in ((case.dtype, "fused"), (torch.float64, "reference")):
        scale = torch.tensor(case.scale, dtype=torch.promote_types(dtype, torch.float32))
        leaves = [videos.to(dtype), texts.to(dtype), scale]
        if backend == "fused":
            leaves[:2] = [laid_out(leaf, case.layout) for leaf in leaves[:2]]
            with sanitized(case.seed) as sanitizer:
                leaves = [leaf.requires_grad_() for leaf in leaves]
                out = function(*leaves, **settings, workspace_bytes=case.workspace, backend="fused")
                values = list(out) if case.partials else [out]
                weights = [
                    case.upstream * (1 + 0.5 * torch.randn(v.shape, generator=generator))
                    for v in values
                ]
                # A row or column without a pair has the log-sum -inf and no gradient.
                finite = [v.isfinite() for v in values]
                weights = [w.where(f, 0.0) for w, f in zip(weights, finite)]
                found = gradients(values, leaves, weights)
                names = ("row sums", "column sums", "positives") if case.partials else ("loss",)
                assert_written(sanitizer, dict(zip(names, values)))
                assert_written(sanitizer, dict(zip(("videos", "texts", "scale"), found)))
            outcomes.append((values, found))
        else:
            leaves = [leaf.requires_grad_() for leaf in leaves]
            out = function(*leaves, **settings, backend="reference")
            values = list(out) if case.partials else [out]
            outcomes.append((values, gradients(values, leaves, [w.double() for w in weights])))
    (values, found), (truths, wanted) = outcomes
    # Log-sums have an error proportional to the scale, plus an absolute error of 5e-6. So has the
    # loss of shared pairs, a difference of log-sums. The loss of single pairs is accurate even if
    # small: its derivative by a logit, which is rounded by 2^-24 of the scale, is at most the loss.
    carries = case.partials or (settings["pair_mode"] == "share" and ids is not None)
    for name, value, truth in zip(names, values, truths):
        assert torch.equal(value.isfinite(), truth.isfinite()), f"{name}: other infinities"
        sure = truth.isfinite()
        assert_close(
            name,
            value.detach()[sure] if sure.dim() else value.detach(),
            truth.detach()[sure] if sure.dim() else truth.detach(),
            2e-5,
            2.0**-17 + 2.0**-21 * case.scale
            if carries
            else 2.0**-22 + 2.0**-22 * case.scale * min(1.0, truth.item()),
        )
    # A float32 logit of this size is rounded by 2^-24 of it before the exponential.
    bar = BARS[case.dtype] + 2.0**-22 * case.scale
    reach = abs(case.upstream) * case.scale / (1 if case.partials else rows)
    # Terms of both signs cancel if rows are alike. Each was rounded, and equal terms equally,
    # so their rounding errors do not average out.
    unit = 2.0**-22 if case.dtype == torch.float32 else BARS[case.dtype]
    floor = (unit + 2.0**-22 * case.scale) * reach
    for name, gradient, truth in zip(("videos", "texts"), found, wanted):
        assert_close(f"gradient of the {name}", gradient, truth, bar, floor)
    # It sums gradients of the logits, which tensor cores read in the rows' type.
    relative = max(1e-4, 2.0**-21 * case.scale)
    if case.dtype != torch.float32:
        # fp16 also for bf16 rows; for logits, rows and columns.
        relative = max(relative, 2.0**-11)
    size = abs(case.upstream) * (2 * rows + columns if case.partials else 1)
    off = (found[2].double() - wanted[2]).abs()
    assert off <= relative * (wanted[2].abs() + size), f"gradient of the scale: {off:.2e}"


TARGET = Target("infonce", CASES, check, full=1000, short=6, batch=50, seconds=60, shrink=False)
