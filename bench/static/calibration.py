"""Kernels of known speed that the static model must predict: a plain product and attention.

They are compiled like the ops, for sm_90 only. No op uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from svilm_fast.bench.static.machine import SMS, Bracket
from svilm_fast.bench.static.table import KernelRow
from svilm_fast.bench.tables import markdown_table
from svilm_fast.kernels.launch import launch
from svilm_fast.kernels.registry import TileWork, Variant

NAME = "calibration"


@triton.jit
def product_kernel(
    left, right, out, ROW_TILES, COLUMN_TILES,
    DEPTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    GROUP: tl.constexpr, PERSISTENT: tl.constexpr,
):  # fmt: skip
    """out = left right^T by TMA, one tile per program or, if PERSISTENT, a loop over tiles."""
    if PERSISTENT:
        for tile in tl.range(
            tl.program_id(0), ROW_TILES * COLUMN_TILES, tl.num_programs(0), flatten=True
        ):
            _product_tile(left, right, out, tile, ROW_TILES, COLUMN_TILES, DEPTH, M, N, K, GROUP)
    else:
        tile = tl.program_id(0)
        _product_tile(left, right, out, tile, ROW_TILES, COLUMN_TILES, DEPTH, M, N, K, GROUP)


@triton.jit
def _product_tile(
    left, right, out, tile, ROW_TILES, COLUMN_TILES,
    DEPTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # GROUP row tiles share their columns in L2.
    group = tile // (GROUP * COLUMN_TILES)
    height = tl.minimum(ROW_TILES - group * GROUP, GROUP)
    row = (group * GROUP + tile % (GROUP * COLUMN_TILES) % height) * M
    column = tile % (GROUP * COLUMN_TILES) // height * N
    total = tl.zeros((M, N), tl.float32)
    for depth in range(0, DEPTH, K):
        total = tl.dot(left.load([row, depth]), right.load([column, depth]).T, total)
    out.store([row, column], total.to(out.dtype))


@triton.jit
def attention_kernel(
    queries, keys, values, out, length, scale,
    D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """softmax(scale queries keys^T) values of one head by TMA, with a running maximum."""
    row = tl.program_id(0) * M
    first = tl.program_id(1) * length
    query = queries.load([first + row, 0])
    highest = tl.full((M,), float("-inf"), tl.float32)
    weights = tl.zeros((M,), tl.float32)
    total = tl.zeros((M, D), tl.float32)
    for start in tl.range(0, length, N):
        dots = tl.dot(query, keys.load([first + start, 0]).T)
        raised = tl.maximum(highest, tl.max(dots, 1) * scale)
        power = tl.exp2(dots * scale - raised[:, None])
        fade = tl.exp2(highest - raised)
        total = total * fade[:, None]
        total = tl.dot(power.to(query.dtype), values.load([first + start, 0]), total)
        weights = weights * fade + tl.sum(power, 1)
        highest = raised
    out.store([first + row, 0], (total / weights[:, None]).to(out.dtype))


def _described(rows: int, columns: int, block: list[int], dtype: torch.dtype) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    tensor = torch.empty((rows, columns), dtype=dtype, device="meta")
    return TensorDescriptor.from_tensor(tensor, block)


def _product(
    rows: int,
    columns: int,
    depth: int,
    step: int,
    dtype: torch.dtype,
    *,
    persistent: bool = False,
) -> Callable[[], None]:
    """Launches a product [rows, columns] in tiles of 128 x 256 x step."""

    def run() -> None:
        tiles = (rows // 128, columns // 256)
        launch(
            product_kernel,
            (SMS if persistent else tiles[0] * tiles[1],),
            _described(rows, depth, [128, step], dtype),
            _described(columns, depth, [256, step], dtype),
            _described(rows, columns, [128, 256], dtype),
            *tiles,
            DEPTH=depth,
            M=128,
            N=256,
            K=step,
            GROUP=8,
            PERSISTENT=persistent,
            num_warps=8,
            num_stages=3,
        )

    return run


def _attention(length: int, heads: int, dim: int) -> Callable[[], None]:
    """Launches attention of 128 queries per program, 128 keys per step."""

    def run() -> None:
        block = [128, dim]
        tensors = [_described(heads * length, dim, block, torch.float16) for _ in range(4)]
        launch(
            attention_kernel,
            (length // 128, heads),
            *tensors,
            length,
            1.0,
            D=dim,
            M=128,
            N=128,
            num_warps=8,
            num_stages=2,
        )

    return run


def _product_work(options: Mapping[str, Any]) -> TileWork:
    steps = options["DEPTH"] // options["K"]
    flops = 2.0 * options["M"] * options["N"] * options["DEPTH"]
    if options["PERSISTENT"]:
        return TileWork(flops, steps=steps)
    return TileWork(flops, looped=False, trips=(steps,))


def _attention_work(options: Mapping[str, Any]) -> TileWork:
    return TileWork(4.0 * options["M"] * options["N"] * options["D"])


TILES: Mapping[str, Callable[[Mapping[str, Any]], TileWork]] = {
    "product_kernel": _product_work,
    "attention_kernel": _attention_work,
}


@dataclass(frozen=True)
class Published:
    """TFLOP/s that others measured with a kernel of this kind, and where they say so."""

    least: float
    most: float
    source: str

    @property
    def text(self) -> str:
        """The range, or the one value."""
        return f"{self.least:.0f}" + (f" to {self.most:.0f}" if self.most > self.least else "")

    def error_percent(self, tflops: float) -> int:
        """How far a prediction is outside of the published range, in percent of its nearer end."""
        nearest = min(max(tflops, self.least), self.most)
        return round(100 * (tflops / nearest - 1))


_BF16, _FP8, _SM_90 = torch.bfloat16, torch.float8_e4m3fn, ("sm_90",)
_TLX = "facebookexperimental/triton PR 1038, warp-specialised"
# label -> run, published speed
_ROWS: dict[str, tuple[Callable[[], None], Published]] = {
    "product bf16 8192 x 8192 x 8192": (
        _product(8192, 8192, 8192, 64, _BF16),
        Published(769, 798, "cuBLAS on H200: an upper reference, no Triton kernel"),
    ),
    "product bf16 65536 x 1024 x 1024": (
        _product(65536, 1024, 1024, 64, _BF16),
        Published(502, 502, f"{_TLX}, one tile per program"),
    ),
    "product bf16 65536 x 1024 x 1024 persistent": (
        _product(65536, 1024, 1024, 64, _BF16, persistent=True),
        Published(564, 564, f"{_TLX}, persistent"),
    ),
    "product fp8 8192 x 8192 x 4096 persistent": (
        _product(8192, 8192, 4096, 128, _FP8, persistent=True),
        Published(1331, 1347, "triton-lang/triton PR 5461, the tutorial's TMA kernels"),
    ),
    "attention fp16 D=128": (
        _attention(8192, 128, 128),
        Published(464, 464, "facebookexperimental/triton PR 205, the tutorial's kernel"),
    ),
}
VARIANTS = tuple(Variant(NAME, label, run, _SM_90) for label, (run, _) in _ROWS.items())


@dataclass(frozen=True)
class CalibrationRow:
    """A calibration row: TFLOP/s predicted (pessimistic, central, optimistic) and published."""

    label: str
    predicted: Bracket
    published: Published

    @property
    def error_percent(self) -> int:
        """Error of the central prediction."""
        return self.published.error_percent(self.predicted.central)


def comparisons(rows: Iterable[KernelRow]) -> list[CalibrationRow]:
    """The calibration rows of a table beside published speeds."""
    return [
        CalibrationRow(
            row.variant,
            Bracket(*(float(each) for each in row.tflops.split("/"))),
            _ROWS[row.variant][1],
        )
        for row in rows
        if row.op == NAME
    ]


def comparison_lines(rows: Iterable[KernelRow]) -> list[str]:
    """The comparisons as a Markdown table; empty without calibration rows."""
    found = comparisons(rows)
    columns = ("kernel of our own", "predicted TFLOP/s", "published", "error", "published for")
    cells = (
        (
            each.label,
            "/".join(f"{value:.0f}" for value in each.predicted),
            each.published.text,
            f"{each.error_percent:+d} %",
            each.published.source,
        )
        for each in found
    )
    return markdown_table(columns, cells, right=columns[1:4]) if found else []
