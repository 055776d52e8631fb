"""Samples, their number, and the peak of memory on a CPU."""

from types import SimpleNamespace

import torch

from svilm_fast.bench.environment import _GPU_FIELDS, environment, gpu_state, slug
from svilm_fast.bench.memory import peak_extra_bytes
from svilm_fast.bench.timing import measure, measure_together

CPU = torch.device("cpu")
_LISTED = (("1", "GPU-a"), ("2", "GPU-b"))
MIB = 2**20


def test_the_peak_is_that_of_live_tensors_and_repeats():
    kept = torch.zeros(MIB // 4)

    def call():
        first = kept + 1  # 1 MiB
        second = torch.cat([first, first])  # 3 MiB live
        del first
        return second.sum()

    assert [peak_extra_bytes(call, CPU) // 1024 for _ in range(3)] == [3 * 1024] * 3


def test_what_the_call_writes_to_stderr_is_kept(capfd):
    def call():
        import os

        os.write(2, b"a warning of the call\n")

    peak_extra_bytes(call, CPU)
    assert capfd.readouterr().err == "a warning of the call\n"


def test_a_long_call_runs_as_often_as_it_was_allowed():
    for most, expected in ((1, 1), (3, 4)):
        calls = []
        timing = measure(lambda calls=calls: calls.append(1), CPU, most=most)
        assert len(calls) == expected
        assert len(timing.samples_ms) == most
        assert timing.peak_extra_bytes == 0


def test_memory_is_left_out_on_request():
    assert measure(lambda: None, CPU, budget_s=0.0, memory=False).peak_extra_bytes is None


def test_rounds_are_drawn_from_the_seed():
    calls = {name: (lambda: None) for name in "abcd"}
    orders = [
        {
            name: timing.order
            for name, timing in measure_together(calls, CPU, budget_s=0.0, seed=seed).items()
        }
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_the_state_is_that_of_the_gpu_in_use(monkeypatch):
    fields = _GPU_FIELDS.split(",")
    lines = [", ".join([driver, uuid, *["0"] * (len(fields) - 2)]) for driver, uuid in _LISTED]
    listed = SimpleNamespace(stdout="\n".join(lines))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: listed)
    for uuid, driver in (("b", "2"), ("c", None)):
        own = SimpleNamespace(uuid=uuid)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, own=own: own)
        assert gpu_state(torch.device("cuda")).get("driver_version") == driver


def test_the_fingerprint_hashes_what_makes_figures_comparable(monkeypatch):
    facts = environment(CPU)
    assert {"dirty", "lock_hash", "ptxas", "load", "container", "variables", "diff_hash"} <= set(
        facts
    )
    assert slug(facts) == f"cpu-{facts['machine'].replace('_', '-')}"
    assert slug(facts | {"gpu": "NVIDIA H200 (MIG 7g)"}) == "nvidia-h200-mig-7g"
    monkeypatch.setenv("SVILM_CONTAINER", "image@sha256:0")
    again = environment(CPU)
    assert again["container"] == "image@sha256:0"
    assert "system" not in facts
    assert again["fingerprint"] == facts["fingerprint"]
    monkeypatch.setattr("platform.python_version", lambda: "3.99")
    assert environment(CPU)["fingerprint"] != facts["fingerprint"]
