"""The device properties that host code reads, real or assumed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DeviceTraits:
    """The properties from which tile shapes and grids are chosen."""

    capability: tuple[int, int]
    sm_count: int
    shared_memory_bytes: int
    name: str


A100 = DeviceTraits((8, 0), 108, 166_912, "NVIDIA A100")
H200 = DeviceTraits((9, 0), 132, 232_448, "NVIDIA H200")
B200 = DeviceTraits((10, 0), 148, 232_448, "NVIDIA B200")

_assumed: DeviceTraits = H200


@contextmanager
def assume_traits(assumed: DeviceTraits) -> Iterator[None]:
    """Use these traits for `meta` tensors and for CPU tensors in the interpreter."""
    global _assumed
    before, _assumed = _assumed, assumed
    try:
        yield
    finally:
        _assumed = before


@functools.cache
def _read_cuda_traits(index: int) -> DeviceTraits:
    properties = torch.cuda.get_device_properties(index)
    return DeviceTraits(
        (properties.major, properties.minor),
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        properties.name,
    )


def _cuda_traits(index: int) -> DeviceTraits:
    # torch.compile warns when it traces a cached function; it calls this one instead of tracing it.
    return _read_cuda_traits(index)


# What `torch.compiler.assume_constant_result` sets; that takes as long as importing torch again.
_cuda_traits._dynamo_marked_constant = True  # type: ignore[attr-defined]


def traits(device: torch.device | str) -> DeviceTraits:
    """The traits of a CUDA device; for any other device those set by `assume_traits`."""
    device = torch.device(device)
    if device.type != "cuda":
        return _assumed
    return _cuda_traits(torch.cuda.current_device() if device.index is None else device.index)
