"""What the static table compiles: both directions of the fused path on `meta` tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..registry import Variant
from .pairs import PairMode

_HOPPER = ("sm_90",)


def _call(
    rows: int,
    columns: int,
    dim: int,
    dtype: torch.dtype,
    *,
    offset: int = 0,
    mode: PairMode | None = None,
    partials: bool = False,
    needs: tuple[bool, bool, bool] = (True, False, False),
) -> Callable[[], None]:
    def run() -> None:
        from .fused.backward import Upstream, backward
        from .fused.forward import Block, forward

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        ids = mode is not None
        block = Block(
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
        backward(block, logs, rows, upstream, needs, 1 << 30)

    return run


# The first holds every kernel; the others add what differs in theirs, to keep the table small.
_RUNS = (
    (
        "bf16 D512 B65536",
        _HOPPER,
        _call(65536, 65536, 512, torch.bfloat16, needs=(True, True, True)),
    ),
    ("bf16 D512 B8192", ("sm_80", "sm_100"), _call(8192, 8192, 512, torch.bfloat16)),
    ("bf16 D512 B1000 ragged", _HOPPER, _call(1000, 1000, 512, torch.bfloat16)),
    ("bf16 D512 exclude", _HOPPER, _call(1024, 1024, 512, torch.bfloat16, mode="exclude")),
    ("bf16 D512 share", _HOPPER, _call(1024, 1024, 512, torch.bfloat16, mode="share")),
    (
        "bf16 D512 rank 3 of 8",
        _HOPPER,
        _call(8192, 65536, 512, torch.bfloat16, offset=24576, partials=True),
    ),
    ("fp32 D256 B1024", ("sm_80", "sm_90"), _call(1024, 1024, 256, torch.float32)),
)

VARIANTS = tuple(Variant("infonce", label, run, targets) for label, targets, run in _RUNS)
