"""The calls whose whole time the static model predicts, and the parts of that time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..backend import use_backend
from ..launch import Launch, Product, tensor_bytes
from ..registry import LaunchWork, Target, WholeOp, memory_pass
from .cases import call

LINES = 65536
_GLUON = ("gluon_sums_kernel", "gluon_gradient_kernel")
# Bytes that a scattered access moves through DRAM.
SECTOR_BYTES = 32


def _sums(launch: Launch) -> LaunchWork:
    """A strip of tiles beside the diagonal, or one tile on it.

    The table numbers the two where both are launched: resident tiles replace the strips.
    """
    from .fused.resident import resident_tile

    if launch.values["TILES"] != "diagonal":
        return LaunchWork("forward", tiles=launch.values["strip"])
    alone = resident_tile(launch.values["videos"].base, None) is not None
    return LaunchWork("forward", tiles=1, row="sums_kernel" if alone else "sums_kernel#2")


def _resident(launch: Launch, part: str) -> LaunchWork:
    """A strip; the product of one more tile runs beside the last epilogue."""
    return LaunchWork(part, tiles=launch.values["strip"] + 1)


def _gluon_sums(launch: Launch) -> LaunchWork:
    """A strip in products of `rows_at_once`."""
    from .fused.gluon_ring import rows_at_once

    values = launch.values
    rows = rows_at_once(values["videos"].base.shape[1])
    return LaunchWork("forward", tiles=values["strip"] * values["TILE_M"] / rows)


def _dots_gradient(launch: Launch) -> LaunchWork:
    """The programs share the tiles of the chunk."""
    values = launch.values
    row_tiles = -(-(values["stop_row"] - values["first_row"]) // values["BLOCK_M"])
    tiles = row_tiles * -(-values["columns"] // values["BLOCK_N"])
    return LaunchWork("dS", tiles=-(-tiles // launch.grid[0]))


def _gluon_gradient(launch: Launch) -> LaunchWork:
    """The programs share the products of the chunk."""
    from .fused.gluon_gradient import BLOCK_M, BLOCK_N

    values = launch.values
    products = -(-(values["stop_row"] - values["first_row"]) // BLOCK_M)
    products *= -(-values["columns"] // BLOCK_N)
    return LaunchWork("dS", tiles=-(-products // launch.grid[0]))


def _diagonal(launch: Launch) -> LaunchWork:
    """One entry per row of the chunk, read and written as a sector."""
    rows = launch.values["stop_row"] - launch.values["first_row"]
    return LaunchWork("rest", memory_bytes=2.0 * SECTOR_BYTES * rows)


def _finish(launch: Launch) -> LaunchWork:
    """Texts and videos are read for the positives of rows and again for those of columns."""
    inputs = launch.values["videos"].nbytes + launch.values["texts"].nbytes
    return LaunchWork("rest", memory_bytes=tensor_bytes(launch) + inputs)


def _product(product: Product) -> str:
    """dT = dS^T V has a sum per text, dV = dS T one per row of the chunk."""
    return "dT" if product.rows == LINES else "dV"


def _target(dim: int, workspace_gib: float, *, gluon: bool = False) -> Target:
    plain = call(
        LINES,
        LINES,
        dim,
        torch.bfloat16,
        needs=(True, True, True),
        workspace_bytes=int(workspace_gib * 2**30),
    )

    def run() -> None:
        with use_backend("gluon"):
            plain()

    size = f"{workspace_gib:g} GiB" if workspace_gib >= 1 else f"{workspace_gib * 1024:g} MiB"
    streamed, resident = (
        ("sums_kernel", "dots_gradient_kernel"),
        ("resident_sums_kernel", "resident_gradient_kernel"),
    )
    variants = dict.fromkeys((*streamed, *resident), f"bf16 D{dim} B{LINES}")
    return Target(
        f"D = {dim} in {size}" + (", Gluon" if gluon else ""),
        {"videos": LINES, "texts": LINES, "dim": dim},
        run if gluon else plain,
        variants | dict.fromkeys(_GLUON, f"bf16 D{dim} gluon"),
    )


_KERNELS: dict[str, Callable[[Launch], LaunchWork]] = {
    "sums_kernel": _sums,
    "resident_sums_kernel": partial(_resident, part="forward"),
    "gluon_sums_kernel": _gluon_sums,
    "fold_kernel": memory_pass("rest"),
    "finish_kernel": _finish,
    "total_kernel": memory_pass("rest"),
    "dots_gradient_kernel": _dots_gradient,
    "resident_gradient_kernel": partial(_resident, part="dS"),
    "gluon_gradient_kernel": _gluon_gradient,
    "diagonal_kernel": _diagonal,
    "finish_gradient_kernel": memory_pass("rest"),
}
WHOLE = WholeOp(
    tuple(
        _target(dim, size, gluon=gluon)
        for gluon in (False, True)
        for dim, size in ((512, 1), (256, 0.5), (256, 2))
    ),
    _KERNELS,
    _product,
)
