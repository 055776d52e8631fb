"""The cases in which pytest-benchmark passes without having looked fail loudly in `pytest bench/`.

Each run here is a whole pytest run, nested in this process.
"""

import json
from pathlib import Path

import pytest

from svilm_fast.bench.compare import pytest_gate
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.run.file import Results
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.suites import ops as ops_suite
from svilm_fast.kernels.registry import ops

BENCH = Path(__file__).parents[2] / "bench"
ONLY = "ops/temporal/ragged/float32/forward/*"
REFERENCE = "ops/temporal/ragged/float32/forward/reference"


@pytest.fixture(scope="module", autouse=True)
def outside_xdist():
    """These tests may themselves run in a worker of xdist, which a nested run would inherit."""
    patch = pytest.MonkeyPatch()
    patch.delenv("PYTEST_XDIST_WORKER", raising=False)
    yield
    patch.undo()


@pytest.fixture
def nested(capfd):
    """Runs `pytest bench/` on two small benchmarks; returns its exit status and what it printed."""

    def run(*arguments):
        common = [str(BENCH), "--svilm-only", ONLY, "--svilm-budget", "0.001", "-q"]
        status = pytest.main([*common, "-p", "no:timeout", *map(str, arguments)])
        printed = capfd.readouterr()
        return int(status), printed.out + printed.err

    return run


@pytest.fixture(scope="module")
def measured(tmp_path_factory, outside_xdist):
    """The result file of a run, measured once."""
    path = tmp_path_factory.mktemp("baseline") / "run.json"
    common = [str(BENCH), "--svilm-only", ONLY, "--svilm-budget", "0.001", "-q"]
    assert pytest.main([*common, "-p", "no:timeout", "--svilm-out", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.fixture
def baseline(tmp_path, measured):
    """Writes a changed copy of the result file."""

    def write(change=lambda content: None):
        content = json.loads(json.dumps(measured))
        content["environment"] |= {"dirty": False, "commit": "0123abcd"}
        change(content)
        path = tmp_path / "baseline.json"
        path.write_text(json.dumps(content))
        return path

    return write


def gate(path, limit="100000%"):
    return ["--svilm-baseline", path, "--svilm-fail-over", limit]


def test_an_equal_run_passes(nested, baseline):
    status, printed = nested(*gate(baseline()))
    assert status == 0, printed
    assert "svilm gate: OK" in printed


def test_the_baseline_is_never_overwritten(nested, baseline):
    path = baseline()
    before = path.read_text()
    status, printed = nested(*gate(path), "--svilm-out", path)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "would overwrite the baseline" in printed
    assert path.read_text() == before


def test_a_baseline_of_uncommitted_code_is_refused(nested, baseline):
    path = baseline(lambda content: content["environment"].update(dirty=True))
    status, printed = nested(*gate(path))
    assert status == pytest_gate.EXIT_OFFSET + ExitCode.INCOMPARABLE
    assert "--svilm-allow-dirty" in printed
    status, printed = nested(*gate(path), "--svilm-allow-dirty")
    assert status == 0, printed


def test_a_vanished_id_fails(nested, baseline):
    def add(content):
        content["records"].append(content["records"][0] | {"id": "ops/temporal/gone/-/-/-"})

    status, printed = nested(*gate(baseline(add)))
    assert status == pytest_gate.EXIT_OFFSET + ExitCode.MISSING
    assert "MISSING ops/temporal/gone/-/-/-: vanished" in printed


def test_a_new_id_fails(nested, baseline):
    status, printed = nested(*gate(baseline(lambda content: content["records"].pop())))
    assert status == pytest_gate.EXIT_OFFSET + ExitCode.MISSING
    assert ": new: the baseline does not have it" in printed


def test_a_deselected_benchmark_counts_as_vanished(nested, baseline):
    status, printed = nested(*gate(baseline()), "-k", "reference")
    assert status == pytest_gate.EXIT_OFFSET + ExitCode.MISSING
    assert "forward/eager: vanished" in printed


def test_another_machines_baseline_fails(nested, baseline):
    def move(content):
        content["environment"] |= {"fingerprint": "0" * 16, "cpu": "another processor"}

    status, printed = nested(*gate(baseline(move)))
    assert status == pytest_gate.EXIT_OFFSET + ExitCode.INCOMPARABLE
    assert "the baseline is of another machine or version: cpu: another processor" in printed


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--benchmark-disable"], "--benchmark-disable is given"),
        (["--benchmark-skip"], "--benchmark-skip is given"),
        (["-n", "2"], "xdist runs them in parallel"),
    ],
)
def test_a_disabled_run_fails(nested, baseline, arguments, reason):
    status, printed = nested(*gate(baseline()), *arguments)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "benchmarks are disabled" in printed
    assert reason in printed


def test_a_worker_of_xdist_fails(nested, baseline, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    status, printed = nested(*gate(baseline()))
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "xdist runs them in parallel" in printed


def test_a_fractional_percentage_is_taken_and_decides(nested, baseline):
    def twice_as_fast(content):
        for record in content["records"]:
            record["samples_ms"] = [sample / 1e4 for sample in record["samples_ms"]]
            record["median_ms"] /= 1e4

    status, printed = nested(*gate(baseline(twice_as_fast), "5.5%"))
    assert status == pytest_gate.EXIT_OFFSET + ExitCode.REGRESSION
    assert f"REGRESSION {REFERENCE}" in printed
    for wrong in ("5.5", "five %"):
        status, printed = nested(*gate(baseline(), wrong))
        assert status == pytest.ExitCode.USAGE_ERROR
        assert "is not a percentage" in printed


def test_the_fraction_of_a_percent_counts():
    def record(milliseconds):
        samples = [milliseconds * (1 + 1e-5 * place) for place in range(20)]
        numbers = {"status": "ok", "samples_ms": samples, "median_ms": samples[10]}
        return Record.from_json({"id": REFERENCE} | numbers)

    environment = {"fingerprint": "same", "dirty": False, "commit": "0123abcd"}
    before = Results(Path("baseline"), environment, {}, {REFERENCE: record(1.0)})
    slower = [record(1.052)]
    assert pytest_gate.judged(before, environment, slower, "5.5%")[0] is ExitCode.OK
    assert pytest_gate.judged(before, environment, slower, "5.1%")[0] is ExitCode.REGRESSION


def test_a_failed_benchmark_is_no_number(nested, baseline, monkeypatch):
    op = ops()["temporal"]

    def wrong(**inputs):
        return 2 * op.reference(**inputs)

    providers = ops_suite.providers
    monkeypatch.setattr(
        ops_suite, "providers", lambda *where: providers(*where) | {"reference": wrong}
    )
    status, printed = nested(*gate(baseline()))
    assert status == pytest_gate.EXIT_OFFSET + ExitCode.FAILED
    assert f"FAILED {REFERENCE}: no figure: wrong_result" in printed


def test_the_weaker_gate_of_pytest_benchmark_is_refused(nested):
    status, printed = nested("--benchmark-compare-fail", "median:5%")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "misses vanished ids" in printed


def test_a_baseline_needs_a_limit_and_a_file(nested, baseline, tmp_path):
    status, printed = nested("--svilm-baseline", baseline())
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "go together" in printed
    status, printed = nested(*gate(tmp_path / "nothing.json"))
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "no result file" in printed
