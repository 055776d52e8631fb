"""Peak bytes of the reference paths: a [B, B] matrix that comes back is seen on any machine."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial

import torch

from svilm_fast.bench.counts.shapes import WORKSPACE_BYTES, both_directions
from svilm_fast.bench.memory import peak_extra_bytes
from svilm_fast.kernels.peers import Provider
from svilm_fast.kernels.registry import Op, ops

CPU = torch.device("cpu")


def count_peaks() -> Iterator[tuple[str, int]]:
    """(case, bytes) of forward and backward of each op on its reference path."""
    for name, op in ops().items():
        yield f"{name}, both directions", peak_of(op, reference_path(op))


def reference_path(op: Op) -> Provider:
    """The op's public function on the CPU, within a small workspace where it has one."""
    bounded = "workspace_bytes" in inspect.signature(op.api).parameters
    options = {"workspace_bytes": WORKSPACE_BYTES} if bounded else {}
    return partial(op.api, backend="reference", **options)


def peak_of(op: Op, provider: Provider) -> int:
    """Peak bytes of forward and backward of a provider on the op's large shape."""
    call = both_directions(op, provider, op.sizes.large)
    call()
    return peak_extra_bytes(call, CPU)
