"""The calls whose whole time the static model predicts, and the parts of that time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..backend import use_backend
from ..launch import Launch, Product, tensor_bytes
from ..registry import LaunchWork, Target, WholeOp, memory_pass
from .cases import call

LINES = 65536
# Bytes that a scattered access moves through DRAM.
SECTOR_BYTES = 32


def _sums(launch: Launch) -> LaunchWork:
    """A strip of tiles beside the diagonal, or one tile on it, which has a row of its own."""
    if launch.values["TILES"] == "diagonal":
        return LaunchWork("forward", tiles=1, row="sums_kernel#2")
    return LaunchWork("forward", tiles=launch.values["strip"])


def _gluon_sums(launch: Launch) -> LaunchWork:
    return LaunchWork("forward", tiles=launch.values["strip"])


def _dots_gradient(launch: Launch) -> LaunchWork:
    """The programs share the tiles of the chunk."""
    values = launch.values
    row_tiles = -(-(values["stop_row"] - values["first_row"]) // values["BLOCK_M"])
    tiles = row_tiles * -(-values["columns"] // values["BLOCK_N"])
    return LaunchWork("dS", tiles=-(-tiles // launch.grid[0]))


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
    variants = dict.fromkeys(("sums_kernel", "dots_gradient_kernel"), f"bf16 D{dim} B{LINES}")
    return Target(
        f"D = {dim} in {size}" + (", Gluon" if gluon else ""),
        {"videos": LINES, "texts": LINES, "dim": dim},
        run if gluon else plain,
        {**variants, "gluon_sums_kernel": f"bf16 D{dim} gluon"},
    )


_KERNELS: dict[str, Callable[[Launch], LaunchWork]] = {
    "sums_kernel": _sums,
    "gluon_sums_kernel": _gluon_sums,
    "fold_kernel": memory_pass("rest"),
    "finish_kernel": _finish,
    "total_kernel": memory_pass("rest"),
    "dots_gradient_kernel": _dots_gradient,
    "diagonal_kernel": _diagonal,
    "finish_gradient_kernel": memory_pass("rest"),
}
WHOLE = WholeOp(
    tuple(_target(dim, size) for dim, size in ((512, 1), (256, 0.5), (256, 2))),
    _KERNELS,
    _product,
)
