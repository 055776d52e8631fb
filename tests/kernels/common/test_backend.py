"""The choice of a path: by hand, by environment, by hardware; and that it says why."""

import logging
import re

import pytest
import torch

from svilm_fast.kernels import backend, choose, explain, use_backend
from svilm_fast.kernels.device import A100, assume_traits
from svilm_fast.kernels.registry import ops

CPU = [torch.zeros(1)]


def test_cpu_takes_the_reference_and_says_so_once(caplog, monkeypatch):
    monkeypatch.delenv("SVILM_KERNELS", raising=False)
    monkeypatch.setattr(backend, "_said", set())
    with caplog.at_level(logging.INFO):
        assert choose("some_op", CPU) == choose("some_op", CPU) == "reference"
    lines = [record.message for record in caplog.records]
    assert lines == ["some_op: reference path, because the tensors are on 'cpu', "
                     "fused kernels need an NVIDIA GPU"]  # fmt: skip


def test_order_of_wishes(monkeypatch):
    monkeypatch.setattr(backend, "_INTERPRETED", True)
    monkeypatch.setenv("SVILM_KERNELS", "fused")
    assert choose("op", CPU) == "fused"
    with use_backend("reference"):
        assert choose("op", CPU) == "reference"
        assert choose("op", CPU, backend="fused") == "fused"
        with use_backend("fused"):
            assert choose("op", CPU) == "fused"
        assert choose("op", CPU) == "reference"


def test_fused_that_cannot_run_raises_with_the_reason(monkeypatch):
    monkeypatch.setattr(backend, "_INTERPRETED", False)
    with pytest.raises(RuntimeError, match="op: the fused path was requested, but the tensors are"):
        choose("op", CPU, backend="fused")
    monkeypatch.setattr(backend, "_INTERPRETED", True)
    with pytest.raises(RuntimeError, match="but 65 groups are too many"):
        choose("op", CPU, backend="fused", unsupported="65 groups are too many")


def test_unsupported_call_falls_back(monkeypatch):
    monkeypatch.setattr(backend, "obstacle", lambda device, allow_interpreter: None)
    assert choose("op", CPU, backend="auto") == "fused"
    assert choose("op", CPU, backend="auto", unsupported="width 7") == "reference"


def test_unknown_choice_names_its_source(monkeypatch):
    monkeypatch.setenv("SVILM_KERNELS", "fastest")
    with pytest.raises(ValueError, match="SVILM_KERNELS is 'fastest'; expected auto, fused"):
        choose("op", CPU)
    with pytest.raises(ValueError, match="op: backend is 'triton'"):
        choose("op", CPU, backend="triton")


def test_tensors_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="all tensors must be on one device, got cpu, meta"):
        choose("op", [torch.zeros(1), None, torch.zeros(1, device="meta")])


def test_explain_lists_every_op_with_a_reason():
    with use_backend("auto"):
        table = explain()
    assert re.match(r"op +device +path +reason", table)
    assert re.search(r"grouping +cpu +reference +the tensors are on 'cpu'", table)


def test_gluon_is_a_choice_for_sm_90_and_never_falls_back(monkeypatch):
    with pytest.raises(ValueError, match="op: backend='gluon' is for all ops: set SVILM_KERNELS"):
        choose("op", CPU, backend="gluon")
    monkeypatch.setenv("SVILM_KERNELS", "gluon")
    monkeypatch.setattr(backend, "_INTERPRETED", True)
    with pytest.raises(RuntimeError, match="op: Gluon kernels were requested, but the tensors are"):
        choose("op", CPU)
    monkeypatch.setattr(backend, "obstacle", lambda device, allow_interpreter: None)
    assert choose("op", CPU) == "fused"
    assert backend.gluon_wanted(CPU[0].device)
    table = explain()
    assert re.search(r"infonce +cpu +gluon +plain kernels for calls that Gluon cannot take", table)
    assert re.search(r"temporal +cpu +fused +no Gluon kernels", table)
    with use_backend("fused"):
        assert re.search(r"infonce +cpu +fused$", explain(), re.MULTILINE)
        assert not backend.gluon_wanted(CPU[0].device)
    with assume_traits(A100):
        with pytest.raises(RuntimeError, match=r"needs compute capability \(9, 0\), NVIDIA A100"):
            choose("op", CPU)
        assert not backend.gluon_wanted(CPU[0].device)
        assert "Gluon kernels are for compute capability (9, 0)" in explain()


@pytest.mark.parametrize("in_interpreter", [True, False])
@pytest.mark.parametrize("name", ops())
def test_gluon_on_a_cpu_is_an_error_that_says_why(monkeypatch, name, in_interpreter):
    """Only a call that asks for another path by its argument runs."""
    op = ops()[name]
    inputs = op.make_inputs(op.sizes.tiny, torch.float32, "cpu", 0)
    monkeypatch.setattr(backend, "_INTERPRETED", in_interpreter)
    monkeypatch.setenv("SVILM_KERNELS", "gluon")
    on_cpu = "the tensors are on 'cpu', fused kernels need an NVIDIA GPU"
    no_gluon = "SVILM_KERNELS is gluon and Triton's interpreter runs no Gluon kernels"
    for path, reason in ((None, on_cpu), ("fused", no_gluon if in_interpreter else on_cpu)):
        with pytest.raises(RuntimeError, match=f"requested, but {reason}"):
            op.api(**inputs, backend=path)
    for path in ("auto", "reference"):
        op.api(**inputs, backend=path)
    table = re.findall(rf"^{name} +cpu +(\w+) +(.*)$", explain(), re.MULTILINE)
    assert table == [("error", on_cpu)]
