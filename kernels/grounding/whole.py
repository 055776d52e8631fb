"""The call whose whole time the static model predicts, and the parts of that time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..backend import use_backend
from ..launch import Launch, tensor_bytes
from ..registry import LaunchWork, Target, WholeOp, memory_pass
from .cases import CASES, loss_inputs
from .fused.layout import DEFAULT_WORKSPACE_BYTES

_LARGE = CASES["large"]


def _loss(workspace_bytes: int = DEFAULT_WORKSPACE_BYTES) -> None:
    """The loss of the large case and all gradients, beta learned."""
    from .fused.function import loss_backward, loss_forward

    sizes = (_LARGE["groups"], _LARGE["nouns"], _LARGE["dim"])
    groups, nouns, mask, number = loss_inputs(_LARGE["batch"], *sizes)
    _, scores, lse, count, copy, rows, weights = loss_forward(groups, nouns, mask, number, number)
    tokens = copy if copy.numel() else groups
    forward = (number, scores, lse, count, tokens, rows, weights, number, number)
    loss_backward(*forward, *sizes, torch.bfloat16, True, True, True, True, workspace_bytes)


def _gluon_loss() -> None:
    with use_backend("gluon"):
        _loss()


def _gluon_strip(launch: Launch) -> LaunchWork:
    return LaunchWork("dS", tiles=launch.values["strip"])


def _strip(launch: Launch, part: str) -> LaunchWork:
    """A strip of tiles; the product of one more tile runs beside the last epilogue."""
    return LaunchWork(part, tiles=launch.values["strip"] + 1)


def _finish(launch: Launch) -> LaunchWork:
    """The group gradient of a chunk; with the last chunk, the others too."""
    values = launch.values
    chunk = 0.0
    if values["group_programs"]:
        item_bytes = 4 + values["groups_gradient"].dtype.itemsize
        chunk = float(values["group_rows"] * values["PADDED_D"] * item_bytes)
    of_groups = (values["groups_sum"], values["groups_gradient"])
    rest = tensor_bytes(launch) - sum(each.nbytes for each in of_groups)
    return LaunchWork("rest", memory_bytes=chunk + rest * (values["noun_programs"] > 0))


_KERNELS: dict[str, Callable[[Launch], LaunchWork]] = {
    "prepare_kernel": memory_pass("rest"),
    "resident_scores_kernel": partial(_strip, part="forward"),
    "stats_kernel": memory_pass("rest"),
    "merge_kernel": memory_pass("rest"),
    "loss_kernel": memory_pass("rest"),
    "resident_gradient_kernel": partial(_strip, part="dS"),
    "gluon_gradient_kernel": _gluon_strip,
    "finish_kernel": _finish,
}
_ROWS = {
    "resident_scores_kernel": "scores G=32 K=4 D=256",
    "resident_gradient_kernel": "loss backward G=32 K=4 D=256",
    "gluon_gradient_kernel": "loss backward G=32 K=4 D=256 gluon",
}
_LABEL = "B = 4,096, K = 4, G = 32, D = 256, beta learned"
WHOLE = WholeOp(
    (
        Target(_LABEL, _LARGE, _loss, _ROWS),
        Target(f"{_LABEL}, Gluon", _LARGE, _gluon_loss, _ROWS),
    ),
    _KERNELS,
)
