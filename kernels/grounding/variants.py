"""The specialisations of the fused kernels that the static table compiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from svilm_fast.kernels.registry import Variant

from .fused.layout import Layout, layout_of

HALF, SINGLE = torch.bfloat16, torch.float32
WITHOUT_SM_100 = ("sm_80", "sm_90")


def _inputs(
    batch: int, groups: int, nouns: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty((batch, groups, dim), dtype=dtype, device="meta"),
        torch.empty((batch, nouns, dim), dtype=dtype, device="meta"),
        torch.empty((batch, nouns), dtype=torch.bool, device="meta"),
        torch.empty((), device="meta"),
    )


def _scores(batch: int, groups: int, nouns: int, dim: int, dtype: torch.dtype = HALF) -> None:
    from .fused.forward import launch_scores

    tokens, rows, _, beta = _inputs(batch, groups, nouns, dim, dtype)
    layout = layout_of(tokens, rows)
    buffers = _prepared(layout)
    launch_scores(buffers[0], buffers[1], buffers[2], beta, layout)


def _prepared(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    def buffer(rows: int) -> Tensor:
        return torch.empty((rows, layout.padded_dim), dtype=layout.dtype, device="meta")

    weights = torch.empty((layout.captions, layout.padded_nouns), device="meta")
    return buffer(layout.videos * layout.padded_groups), buffer(layout.rows), weights


def _backward(
    batch: int,
    groups: int,
    nouns: int,
    dim: int,
    dtype: torch.dtype = HALF,
    *,
    loss: bool = True,
    beta_gradient: bool = True,
) -> None:
    from .fused.backward import LossContext, Needs, Prepared, backward
    from .fused.matrix import MatrixStatistics

    tokens, rows, _, beta = _inputs(batch, groups, nouns, dim, dtype)
    layout = layout_of(tokens, rows)
    scores = torch.empty((batch, batch), device="meta")
    context = None
    if loss:
        lse = torch.empty((2, batch), device="meta")
        context = LossContext(scores, beta, MatrixStatistics(beta, lse, beta))
    backward(
        Prepared(*_prepared(layout)),
        beta,
        layout,
        Needs(True, True, beta_gradient, scale=loss),
        dtype,
        beta if loss else scores,
        1 << 40,
        context,
    )


def _prepare(batch: int, groups: int, nouns: int, dim: int) -> None:
    from .fused.forward import prepare

    tokens, rows, mask, _ = _inputs(batch, groups, nouns, dim, HALF)
    prepare(tokens, rows, mask, layout_of(tokens, rows))


def _matrix(batch: int) -> None:
    from .fused.matrix import matrix_backward, matrix_forward

    scores, number = torch.empty((batch, batch), device="meta"), torch.empty((), device="meta")
    valid = torch.empty((batch,), dtype=torch.int8, device="meta")
    statistics = matrix_forward(scores, number, valid)
    matrix_backward(scores, number, valid, statistics, number)


def _variant(label: str, run: Callable[[], object], targets: tuple[str, ...] = ()) -> Variant:
    if not targets:
        return Variant("grounding", label, run)
    return Variant("grounding", label, run, targets)


SM_90 = ("sm_90",)
VARIANTS = (
    _variant("scores G=32 K=2 D=256", partial(_scores, 1024, 32, 2, 256)),
    _variant("scores G=64 K=4 D=512", partial(_scores, 2048, 64, 4, 512), SM_90),
    _variant("scores G=12 K=3 D=208", partial(_scores, 1000, 12, 3, 208), SM_90),
    _variant("scores G=8 K=1 D=64", partial(_scores, 1024, 8, 1, 64), SM_90),
    _variant("scores float32", partial(_scores, 1024, 32, 2, 256, SINGLE), WITHOUT_SM_100),
    _variant("loss backward G=32 K=2 D=256", partial(_backward, 1024, 32, 2, 256)),
    _variant(
        "loss backward G=32 K=2 D=256, beta fixed",
        partial(_backward, 1024, 32, 2, 256, beta_gradient=False),
        SM_90,
    ),
    _variant("loss backward G=64 K=4 D=512", partial(_backward, 2048, 64, 4, 512), SM_90),
    _variant("loss backward G=12 K=3 D=208", partial(_backward, 1000, 12, 3, 208), SM_90),
    _variant(
        "scores backward G=32 K=4 D=256", partial(_backward, 4096, 32, 4, 256, loss=False), SM_90
    ),
    _variant("loss backward float32", partial(_backward, 1024, 32, 2, 256, SINGLE), WITHOUT_SM_100),
    _variant("prepare G=32 K=2 D=256", partial(_prepare, 1024, 32, 2, 256), SM_90),
    _variant("matrix, one program", partial(_matrix, 1024), SM_90),
    _variant("matrix, many programs", partial(_matrix, 4096), SM_90),
)
