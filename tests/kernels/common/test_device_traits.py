"""torch.compile treats the traits of a CUDA device as constants."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import torch

from svilm_fast.kernels import device


def test_compiled_code_takes_the_traits_of_a_gpu_as_constants(monkeypatch):
    properties = SimpleNamespace(
        major=9,
        minor=0,
        multi_processor_count=132,
        shared_memory_per_block_optin=232_448,
        name="a GPU",
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    device._read_cuda_traits.cache_clear()

    def scaled(x: torch.Tensor) -> torch.Tensor:
        found = device.traits("cuda:0")
        return x if found.capability < (9, 0) else x * found.sm_count

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = torch.compile(scaled, fullgraph=True, backend="eager")(torch.ones(2))
    finally:
        device._read_cuda_traits.cache_clear()
        torch.compiler.reset()
    assert result.tolist() == [132.0, 132.0]
