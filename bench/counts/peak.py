"""Peak bytes of the reference paths: a [B, B] matrix that comes back shows on any machine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from svilm_fast.bench.memory import peak_extra_bytes
from svilm_fast.bench.suites.proof import first_output, leaves
from svilm_fast.kernels.peers import Provider
from svilm_fast.kernels.registry import Op, ops

WORKSPACE_BYTES = 1 << 20


def both_directions(op: Op, provider: Provider, shape: Mapping[str, Any]) -> Callable[[], object]:
    """Forward and backward of a provider on the op's inputs, fp32 on the CPU."""
    inputs = op.make_inputs(shape, torch.float32, "cpu", 0)
    wanted = leaves(inputs)

    def call() -> object:
        output = first_output(provider(**inputs))
        return torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)

    return call


def count_peaks() -> Iterator[tuple[str, int]]:
    """(case, bytes) of forward and backward of each op on its reference path."""
    for name, op in ops().items():
        yield f"{name}, both directions", peak_of(op, reference_path(op))


def reference_path(op: Op) -> Provider:
    """The op's public function on the CPU, with a small workspace where it takes one."""
    bounded = "workspace_bytes" in inspect.signature(op.api).parameters
    options = {"workspace_bytes": WORKSPACE_BYTES} if bounded else {}
    return partial(op.api, backend="reference", **options)


def peak_of(op: Op, provider: Provider) -> int:
    """Peak bytes of forward and backward of a provider on the op's large shape."""
    call = both_directions(op, provider, op.sizes.large)
    call()
    return peak_extra_bytes(call, torch.device("cpu"))
