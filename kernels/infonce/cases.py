"""Named shapes of infonce, their inputs, and the variants that the static table compiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.functional import normalize

from ..registry import RoleWork, Sizes, TileWork, Variant
from .pairs import PairMode


def _square(batch: int, dim: int, **more: Any) -> dict[str, Any]:
    return {"videos": batch, "texts": batch, "dim": dim, **more}


CASES: dict[str, dict[str, Any]] = {
    "pairs_1024_dim_256": _square(1024, 256),
    "pairs_4096_dim_256": _square(4096, 256),
    "pairs_8192_dim_512": _square(8192, 512),
    "pairs_10007_dim_512": _square(10007, 512),
    "pairs_65536_dim_256": _square(65536, 256),
    "pairs_65536_dim_512": _square(65536, 512),
    "pairs_65536_dim_768": _square(65536, 768),
    "pairs_8192_dim_512_exclude": _square(8192, 512, pair_mode="exclude"),
    "rank_3_of_8_dim_512": {"videos": 8192, "texts": 65536, "dim": 512, "diagonal_offset": 24576},
    "pairs_65536_dim_256_2_gib": _square(65536, 256, workspace_bytes=2 << 30),
    "pairs_65536_dim_512_1_gib": _square(65536, 512, workspace_bytes=1 << 30),
    "pairs_65536_dim_512_2_gib": _square(65536, 512, workspace_bytes=2 << 30),
    "pairs_65536_dim_768_2_gib": _square(65536, 768, workspace_bytes=2 << 30),
}
SIZES = Sizes(
    tiny=_square(2, 8),
    small=_square(24, 32),
    large=_square(1024, 64),
    cpu={"pairs_256_dim_128": _square(256, 128)},
    peers={f"pairs_{n}_dim_256": _square(n, 256) for n in (256, 512, 1024, 2048, 4096, 8192)},
    compared=("pairs_65536_dim_512",),
)
_HOPPER = ("sm_90",)
# Rows of the declared chunk of `gluon_gradient_kernel`: those of D = 512 in 1 GiB.
GLUON_CHUNK = 5504
_COUNTED = "bf16 D512 B65536"


def make_inputs(
    case: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str, seed: int
) -> dict[str, Any]:
    """Keyword arguments of `api.infonce`: correlated unit vectors, scale 1/0.07."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(rows: int) -> torch.Tensor:
        return torch.randn(rows, case["dim"], generator=generator, device=device)

    videos, texts = normalize(noise(case["videos"]), dim=1), noise(case["texts"])
    offset = case.get("diagonal_offset", 0)
    texts[offset : offset + case["videos"]] += case["dim"] ** 0.5 * videos
    inputs: dict[str, Any] = {
        "videos": videos.to(dtype),
        "texts": normalize(texts, dim=1).to(dtype),
        "scale": torch.tensor(1 / 0.07, device=device),
        "diagonal_offset": offset,
    }
    if "workspace_bytes" in case:
        inputs["workspace_bytes"] = case["workspace_bytes"]
    if "pair_mode" in case:
        inputs["pair_ids"] = torch.arange(case["videos"], device=device) // 2
        inputs["pair_mode"] = case["pair_mode"]
    return inputs


def call(
    rows: int,
    columns: int,
    dim: int,
    dtype: torch.dtype,
    *,
    offset: int = 0,
    mode: PairMode | None = None,
    partials: bool = False,
    needs: tuple[bool, bool, bool] = (True, False, False),
    workspace_bytes: int = 1 << 30,
) -> Callable[[], None]:
    """Forward and backward through the host functions of the kernels, on `meta` tensors."""

    def run() -> None:
        from .fused.backward import Upstream, backward
        from .fused.forward import CallTensors, forward

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        ids = mode is not None
        block = CallTensors(
            empty(rows, dim, dtype=dtype),
            empty(columns, dim, dtype=dtype),
            empty(),
            empty(rows, dtype=torch.int32) if ids else None,
            empty(columns, dtype=torch.int32) if ids else None,
            empty(rows) if mode == "share" else None,
            offset,
        )
        _, logs = forward(block, with_loss=not partials)
        upstream = Upstream(empty(rows), empty(columns), empty(rows)) if partials else empty()
        backward(block, logs, rows, upstream, needs, workspace_bytes)

    return run


def _gluon(dim: int) -> Callable[[], None]:
    """The launches of the Gluon kernels for 65,536 videos and texts, none of which has a positive.

    The gradient is that of the loss and of a chunk of 5,504 rows.
    """

    def run() -> None:
        from .fused.backward import LIFT
        from .fused.forward import line_blocks
        from .fused.gluon_gradient import launch_gradient
        from .fused.gluon_sums import launch_sums
        from .fused.layout import LINES, MAX_STRIP_TILES, tile_of

        lines = 65536

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        videos, texts = (empty(lines, dim, dtype=torch.bfloat16) for _ in range(2))
        tile = tile_of(videos)
        strips, tiles = lines // (MAX_STRIP_TILES * tile.rows), lines // tile.columns
        launch_sums(
            videos,
            texts,
            empty(),
            (empty(tiles, lines), empty(strips, lines)),
            tile,
            (0, lines),
            0,
            tiles,
            lines,
            strips,
            MAX_STRIP_TILES,
        )
        blocks, chunk = line_blocks(lines), GLUON_CHUNK
        launch_gradient(
            videos,
            texts,
            empty(),
            (
                empty(2 * blocks * LINES),
                empty(2 * blocks * LINES),
                empty(2 * blocks, dtype=torch.int32),
                None,
            ),
            empty(chunk, lines, dtype=torch.float16),
            (0, chunk, lines, lines, lines, blocks),
            LIFT,
        )

    return run


# The first run covers every kernel. The others add kernels with other specialisations only, to keep
# the table small.
_RUNS = (
    (
        _COUNTED,
        _HOPPER,
        call(65536, 65536, 512, torch.bfloat16, needs=(True, True, True)),
    ),
    ("bf16 D256 B65536", _HOPPER, call(65536, 65536, 256, torch.bfloat16)),
    ("bf16 D256 partials", _HOPPER, call(8192, 65536, 256, torch.bfloat16, partials=True)),
    ("fp16 D128 B65536", _HOPPER, call(65536, 65536, 128, torch.float16)),
    ("bf16 D512 B8192", ("sm_80", "sm_100"), call(8192, 8192, 512, torch.bfloat16)),
    ("bf16 D512 B1000 ragged", _HOPPER, call(1000, 1000, 512, torch.bfloat16)),
    ("bf16 D512 exclude", _HOPPER, call(1024, 1024, 512, torch.bfloat16, mode="exclude")),
    ("bf16 D512 share", _HOPPER, call(1024, 1024, 512, torch.bfloat16, mode="share")),
    (
        "bf16 D512 rank 3 of 8",
        _HOPPER,
        call(8192, 65536, 512, torch.bfloat16, offset=24576, partials=True),
    ),
    ("fp32 D256 B1024", ("sm_80", "sm_90"), call(1024, 1024, 256, torch.float32)),
    ("bf16 D512 gluon", _HOPPER, _gluon(512)),
    ("bf16 D256 gluon", _HOPPER, _gluon(256)),
)

VARIANTS = tuple(
    Variant("infonce", label, run, targets, counted=label == _COUNTED)
    for label, targets, run in _RUNS
)


def _tile(options: Mapping[str, Any], stored_bytes: int) -> TileWork:
    """A tile of `tile_dots`, of which each result stores `stored_bytes`."""
    results = options["BLOCK_M"] * options["BLOCK_N"]
    steps = -(-options["DEPTH"] // options["BLOCK_K"])
    flat = options["FLATTEN"]
    return TileWork(
        2.0 * results * options["DEPTH"],
        float(results * stored_bytes),
        steps=steps if flat else 1,
        trips=() if flat else (steps,),
    )


def _resident(options: Mapping[str, Any], stored_bytes: int) -> TileWork:
    """A tile of full depth, which is unrolled; a program takes the tiles of a strip."""
    results = options["BLOCK_M"] * options["BLOCK_N"]
    return TileWork(2.0 * results * options["DEPTH"], float(results * stored_bytes))


def _gluon_tile(options: Mapping[str, Any]) -> TileWork:
    """A product of `gluon_sums_kernel`: two groups take turns, one warp copies.

    Its start is shared by the products of a strip of the longest kind.
    """
    from .fused.gluon_ring import DEPTH, rows_at_once
    from .fused.layout import MAX_STRIP_TILES

    columns, depth = options["TILE_M"], options["STEPS"] * DEPTH
    rows = rows_at_once(depth)
    strip = MAX_STRIP_TILES * options["TILE_M"] // rows
    group = RoleWork(4, share=0.5)
    copying = RoleWork(
        1,
        copies=options["STEPS"],
        stages=options["STAGES"],
        shared_bytes=2.0 * columns * depth,
        shared_by=strip,
    )
    return TileWork(
        2.0 * rows * columns * depth, roles=(group, copying, group), program_tiles=strip
    )


def _gluon_gradient_tile(options: Mapping[str, Any]) -> TileWork:
    """A product of `gluon_gradient_kernel` in the declared launch: 64 rows of dS of 128 texts."""
    from .fused.gluon_gradient import BLOCK_M, BLOCK_N, DEPTH

    depth = options["STEPS"] * DEPTH
    row_products = GLUON_CHUNK // BLOCK_M
    group = RoleWork(4, share=0.5)
    copying = RoleWork(
        1,
        copies=options["STEPS"],
        stages=options["STAGES"],
        shared_bytes=2.0 * BLOCK_N * depth,
        shared_by=row_products,
    )
    products = row_products * (65536 // BLOCK_N) // 132
    return TileWork(
        2.0 * BLOCK_M * BLOCK_N * depth,
        2.0 * BLOCK_M * BLOCK_N,
        roles=(group, copying, group),
        program_tiles=products,
    )


TILES: dict[str, Callable[[Mapping[str, Any]], TileWork]] = {
    "resident_sums_kernel": partial(_resident, stored_bytes=0),
    "resident_gradient_kernel": partial(_resident, stored_bytes=2),
    "sums_kernel": partial(_tile, stored_bytes=0),
    "gluon_sums_kernel": _gluon_tile,
    "gluon_gradient_kernel": _gluon_gradient_tile,
    "dots_gradient_kernel": partial(_tile, stored_bytes=2),
}
