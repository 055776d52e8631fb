"""Recording of launches, device traits without a device, and the registry's rules."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from svilm_fast.kernels import assume_traits, launch, ops, record_launches, register, traits
from svilm_fast.kernels.device import B200, H200


class FakeKernel:
    def __init__(self):
        self.runs = []

    def __getitem__(self, grid):
        return lambda *args, **meta: self.runs.append((grid, args, meta))


def test_launch_runs_or_records_but_never_both():
    kernel = FakeKernel()
    launch(kernel, (2, 3), "x", BLOCK=64)
    assert kernel.runs == [((2, 3), ("x",), {"BLOCK": 64})]
    with record_launches() as outer:
        launch(kernel, (1,), "y")
        with record_launches() as inner:
            launch(kernel, (1,), "z", num_warps=8)
        launch(kernel, (1,), "w")
    assert len(kernel.runs) == 1
    assert [entry.args for entry in outer] == [("y",), ("w",)]
    assert inner[0].meta == {"num_warps": 8}


def test_empty_grid_starts_nothing():
    kernel = FakeKernel()
    launch(kernel, (0, 3), "x")
    assert kernel.runs == []


@pytest.mark.parametrize("described", [False, True])
def test_a_kernel_runs_on_the_gpu_of_its_tensors(monkeypatch, described):
    entered = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda index: entered.append(index) or nullcontext())
    kernel = FakeKernel()
    with FakeTensorMode():
        tensors = [torch.empty(2, device=f"cuda:{index}") for index in (0, 1)]
    for tensor in tensors:
        launch(kernel, (1,), 7, SimpleNamespace(base=tensor) if described else tensor)
    launch(kernel, (1,), torch.empty(2))
    assert entered == [1]
    assert len(kernel.runs) == 3


def test_traits_without_a_device_are_the_assumed_ones():
    assert traits("meta") == H200
    with assume_traits(B200):
        assert traits(torch.device("meta")).capability == (10, 0)
    assert traits("meta").shared_memory_bytes == 232_448


def test_every_op_is_registered_once_with_its_rooms():
    registry = ops()
    assert {"grouping", "temporal"} <= set(registry)
    for name, op in registry.items():
        assert op.name == name
        assert op.cases
        assert all(path.is_file() for path in op.kernel_paths)
        assert all(variant.op == name for variant in op.variants)
        labels = [variant.label for variant in op.variants]
        assert len(set(labels)) == len(labels)
    assert ops() == registry


def test_second_registration_of_a_name_is_refused():
    first = ops()["grouping"]
    with pytest.raises(ValueError, match="'grouping' registers twice"):
        register(replace(first, cases={}))
