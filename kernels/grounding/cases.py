"""Named shapes of grounding, their inputs, and the variants that the static table compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import Choice, use_backend
from ..registry import RoleWork, Sizes, TileWork, Variant
from .fused.layout import Layout, layout_of

CASES = {
    "demo": {"batch": 16, "groups": 8, "nouns": 2, "dim": 64},
    "paper": {"batch": 1024, "groups": 32, "nouns": 2, "dim": 256},
    "large": {"batch": 4096, "groups": 32, "nouns": 4, "dim": 256},
    "ragged": {"batch": 1000, "groups": 12, "nouns": 3, "dim": 208},
    "wide": {"batch": 2048, "groups": 64, "nouns": 4, "dim": 512},
}
SIZES = Sizes(
    tiny={"batch": 2, "groups": 2, "nouns": 1, "dim": 8},
    small={"batch": 9, "groups": 4, "nouns": 2, "dim": 32},
    large={"batch": 512, "groups": 8, "nouns": 2, "dim": 32},
    cpu={"pairs_128": {"batch": 128, "groups": 8, "nouns": 2, "dim": 128}},
    peers={
        f"pairs_{n}_groups_32_nouns_2_dim_256": {"batch": n, "groups": 32, "nouns": 2, "dim": 256}
        for n in (64, 128, 256, 512)
    },
    compared=("large", "paper"),
)


def make_inputs(
    case: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str, seed: int
) -> dict[str, Any]:
    """Keyword arguments of `grounding_loss`: unit vectors, one caption in eight without nouns."""
    generator = torch.Generator().manual_seed(seed)
    batch, nouns, dim = case["batch"], case["nouns"], case["dim"]

    def unit(*shape: int) -> torch.Tensor:
        vectors = torch.randn(shape, generator=generator)
        return F.normalize(vectors, dim=-1).to(device=device, dtype=dtype).requires_grad_()

    present = torch.randint(1, nouns + 1, (batch, 1), generator=generator)
    present[3::8] = 0
    scalar = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "groups": unit(batch, case["groups"], dim),
        "nouns": unit(batch, nouns, dim),
        "noun_mask": (torch.arange(nouns) < present).to(device),
        "beta": torch.tensor(10.0, dtype=scalar, device=device, requires_grad=True),
        "scale": torch.tensor(20.0, dtype=scalar, device=device, requires_grad=True),
    }


HALF, SINGLE = torch.bfloat16, torch.float32
WITHOUT_SM_100 = ("sm_80", "sm_90")


def loss_inputs(
    batch: int, groups: int, nouns: int, dim: int, dtype: torch.dtype = HALF
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Group tokens, nouns, noun mask and a number, on `meta`."""
    return (
        torch.empty((batch, groups, dim), dtype=dtype, device="meta"),
        torch.empty((batch, nouns, dim), dtype=dtype, device="meta"),
        torch.empty((batch, nouns), dtype=torch.bool, device="meta"),
        torch.empty((), device="meta"),
    )


def _scores(batch: int, groups: int, nouns: int, dim: int, dtype: torch.dtype = HALF) -> None:
    from .fused.forward import launch_scores

    tokens, rows, _, beta = loss_inputs(batch, groups, nouns, dim, dtype)
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
    choice: Choice = "fused",
) -> None:
    from .fused.backward import ForwardBuffers, LossContext, Needs, backward
    from .fused.matrix import MatrixStatistics

    tokens, rows, _, beta = loss_inputs(batch, groups, nouns, dim, dtype)
    layout = layout_of(tokens, rows)
    scores = torch.empty((batch, batch), device="meta")
    context = None
    if loss:
        lse = torch.empty((2, batch), device="meta")
        context = LossContext(scores, beta, MatrixStatistics(beta, lse, beta))
    with use_backend(choice):
        backward(
            ForwardBuffers(*_prepared(layout)),
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

    tokens, rows, mask, _ = loss_inputs(batch, groups, nouns, dim, HALF)
    prepare(tokens, rows, mask, layout_of(tokens, rows))


def _matrix(batch: int) -> None:
    from .fused.matrix import matrix_backward, matrix_forward

    scores, number = torch.empty((batch, batch), device="meta"), torch.empty((), device="meta")
    valid = torch.empty((batch,), dtype=torch.int8, device="meta")
    statistics = matrix_forward(scores, number, valid)
    matrix_backward(scores, number, valid, statistics, number)


_variant = partial(Variant, "grounding")


GLUON_STRIP = 32
SM_90 = ("sm_90",)
VARIANTS = (
    _variant("scores G=32 K=2 D=256", partial(_scores, 1024, 32, 2, 256), counted=True),
    _variant("scores G=64 K=4 D=512", partial(_scores, 2048, 64, 4, 512), SM_90),
    _variant("scores G=32 K=4 D=256", partial(_scores, 4096, 32, 4, 256), SM_90),
    _variant("scores G=12 K=3 D=208", partial(_scores, 1000, 12, 3, 208), SM_90),
    _variant("scores G=8 K=1 D=64", partial(_scores, 1024, 8, 1, 64), SM_90),
    _variant("scores float32", partial(_scores, 1024, 32, 2, 256, SINGLE), WITHOUT_SM_100),
    _variant("loss backward G=32 K=2 D=256", partial(_backward, 1024, 32, 2, 256), counted=True),
    _variant(
        "loss backward G=32 K=2 D=256, beta fixed",
        partial(_backward, 1024, 32, 2, 256, beta_gradient=False),
        SM_90,
    ),
    _variant("loss backward G=64 K=4 D=512", partial(_backward, 2048, 64, 4, 512), SM_90),
    _variant("loss backward G=32 K=4 D=256", partial(_backward, 4096, 32, 4, 256), SM_90),
    _variant("loss backward G=12 K=3 D=208", partial(_backward, 1000, 12, 3, 208), SM_90),
    _variant(
        "scores backward G=32 K=4 D=256", partial(_backward, 4096, 32, 4, 256, loss=False), SM_90
    ),
    *(
        _variant(f"{label} gluon", partial(_backward, *sizes, choice="gluon", loss=loss), SM_90)
        for label, sizes, loss in (
            ("loss backward G=32 K=2 D=256", (1024, 32, 2, 256), True),
            ("loss backward G=32 K=4 D=256", (4096, 32, 4, 256), True),
            ("loss backward G=12 K=3 D=208", (1000, 12, 3, 208), True),
            ("scores backward G=32 K=4 D=256", (4096, 32, 4, 256), False),
        )
    ),
    _variant("loss backward float32", partial(_backward, 1024, 32, 2, 256, SINGLE), WITHOUT_SM_100),
    _variant("prepare G=32 K=2 D=256", partial(_prepare, 1024, 32, 2, 256), SM_90),
    _variant("matrix, one program", partial(_matrix, 1024), SM_90),
    _variant("matrix, many programs", partial(_matrix, 4096), SM_90),
)


def _tile(options: Mapping[str, Any], stored_bytes: int, looped: bool) -> TileWork:
    """A tile of full depth, which is unrolled; a result stores `stored_bytes`.

    `looped`: a program takes the tiles of a strip instead of one.
    """
    results = options["BLOCK_M"] * options["BLOCK_N"]
    return TileWork(2.0 * results * options["D"], float(results * stored_bytes), looped=looped)


def _gluon_tile(options: Mapping[str, Any]) -> TileWork:
    """A tile of `gluon_gradient_kernel`: two groups of 64 rows each, one warp copies.

    The nouns are copied once for the tiles of the longest strip of the declared calls.
    """
    from .fused.gluon_gradient import GROUP_ROWS

    rows, columns, strip = 2 * GROUP_ROWS, options["BLOCK_N"], GLUON_STRIP
    depth = options["STEPS"] * options["BLOCK_K"]
    group = RoleWork(4)
    copying = RoleWork(
        1,
        copies=options["STEPS"],
        stages=options["STAGES"],
        shared_bytes=2.0 * rows * depth,
        shared_by=strip,
    )
    return TileWork(
        2.0 * rows * columns * depth,
        2.0 * rows * columns,
        roles=(group, copying, group),
        program_tiles=strip,
    )


TILES: dict[str, Callable[[Mapping[str, Any]], TileWork]] = {
    "scores_kernel": partial(_tile, stored_bytes=0, looped=False),
    "resident_scores_kernel": partial(_tile, stored_bytes=0, looped=True),
    "dots_gradient_kernel": partial(_tile, stored_bytes=2, looped=False),
    "resident_gradient_kernel": partial(_tile, stored_bytes=2, looped=True),
    "gluon_gradient_kernel": _gluon_tile,
}
