"""Memory of ours grows linearly with the global batch, of the plain forms quadratically."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from svilm_fast.bench.memory import peak_extra_bytes
from svilm_fast.bench.memory_scaling import cases as scaling_cases
from svilm_fast.bench.memory_scaling import command
from svilm_fast.bench.memory_scaling.measure import Peak, child_peak, exponent, scaling_exponents

CPU = torch.device("cpu")
CASES = {case.name: case for case in scaling_cases.cases(CPU)}


@pytest.mark.parametrize(
    "name, batches, low, high",
    [
        ("infonce/plain", (256, 512), 1.85, 2.05),
        ("infonce/chunked", (256, 512), 0.9, 1.1),
        ("grounding/plain", (64, 128), 1.85, 2.05),
        # The scores themselves, B x B numbers, stay: 1/64 of the dot products.
        ("grounding/chunked", (64, 128), 0.9, 1.15),
    ],
)
def test_allocated_bytes_grow(monkeypatch, name, batches, low, high):
    monkeypatch.setitem(scaling_cases.WORKSPACE_BYTES, "cpu", 1 << 14)
    monkeypatch.setattr(scaling_cases, "DIM", 32)
    points = [
        (batch, peak_extra_bytes(lambda batch=batch: CASES[name].run(batch, CPU), CPU))
        for batch in batches
    ]
    assert low < exponent(points) < high, points


def test_a_gpu_measures_the_same_cases_at_larger_batches():
    for case in scaling_cases.cases(torch.device("cuda")):
        small = CASES[case.name]
        assert case.batches[0] >= small.batches[0]
        assert len(case.batches) > 3
        assert case.needs_gpu == small.needs_gpu == (case.method == "fused")


def test_growth_is_read_off_the_last_three_sizes():
    found = [Peak("a", "b", size, 7 + 3 * size**2, "ok") for size in (1, 10, 1000, 2000, 4000)]
    found += [Peak("a", "c", size, 5, "ok") for size in (1, 2)]
    found += [Peak("a", "d", size, None, "out of memory") for size in (1, 2, 3)]
    assert scaling_exponents(found) == {"a/b": pytest.approx(2.0, abs=1e-4)}


def test_command_writes_figures_and_picture(monkeypatch, tmp_path):
    def measured(device):
        for case in scaling_cases.cases(device):
            for batch in case.batches:
                known = None if case.needs_gpu else batch * 10_000
                yield Peak(case.subject, case.method, batch, known, "not measured yet: needs a GPU")

    monkeypatch.setattr(command, "peaks", measured)
    app = typer.Typer()
    app.command()(command.memory)
    out, figure = tmp_path / "memory.json", tmp_path / "memory.png"
    words = ["--device", "cpu", "--out", str(out), "--figure", str(figure)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "not measured yet: needs a GPU" in result.output
    written = json.loads(out.read_text())
    assert written["growth"]["infonce/chunked"] == pytest.approx(1.0)
    assert {r["bytes"] for r in written["records"] if r["method"] == "fused"} == {None}
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_resident_memory_of_child_processes():
    plain = [child_peak("infonce/plain", batch) for batch in (1024, 2048)]
    assert plain[1] > 4 * 2048**2 * 3
    assert plain[1] > 2.5 * plain[0] > 0
