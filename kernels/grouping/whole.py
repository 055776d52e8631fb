"""The calls whose whole time the static model predicts, and the parts of that time."""

from __future__ import annotations

from collections.abc import Callable

from ..launch import Launch
from ..registry import LaunchWork, Target, WholeOp, memory_pass
from .cases import CASES, VARIANTS


def _tiles(launch: Launch) -> int:
    return -(-launch.values["chunk"] // launch.values["BLOCK_L"])


def _forward(launch: Launch) -> LaunchWork:
    """`chunk` tokens of a sample per program; the start takes as long as some tiles (`layout`)."""
    from .fused.layout import FIXED_TILES

    return LaunchWork("kernel", tiles=_tiles(launch) + FIXED_TILES)


def _stream(launch: Launch) -> LaunchWork:
    """`chunk` tokens of a sample per program, and the steps of one tile more."""
    return LaunchWork("kernel", tiles=_tiles(launch) + 1)


def _gluon(launch: Launch) -> LaunchWork:
    tokens = launch.values["tokens"].block_shape[1]
    return LaunchWork("kernel", tiles=-(-launch.values["chunk"] // tokens))


def _target(way: str, kind: str = "") -> Target:
    label = f"target bfloat16 {way}{kind}"
    [variant] = [each for each in VARIANTS if each.label == label]
    rows = dict.fromkeys(_KERNELS, label)
    name = f"{way}, 256 x 3,136 x 768, G = 32" + (", Gluon" if kind else "")
    return Target(name, CASES["target"], variant.run, rows, (way,))


_KERNELS: dict[str, Callable[[Launch], LaunchWork]] = {
    "grouping_forward_kernel": _forward,
    "gluon_grouping_forward_kernel": _gluon,
    "grouping_backward_prepare_kernel": memory_pass("rest"),
    "grouping_backward_stream_kernel": _stream,
    "gluon_grouping_backward_kernel": _gluon,
}
WHOLE = WholeOp(
    tuple(_target(way, kind) for way in ("forward", "backward") for kind in ("", " gluon")),
    _KERNELS,
)
