"""`pytest bench/`: the registered benchmarks with pytest-benchmark as their runner."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from svilm_fast.bench.compare import pytest_gate
from svilm_fast.bench.environment import environment
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.run.file import Results, write_json
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.runner import result
from svilm_fast.bench.suites import benchmarks
from svilm_fast.bench.suites.benchmark import Benchmark

_RECORDS = pytest.StashKey[dict[str, Record]]()
_ENVIRONMENT = pytest.StashKey[dict[str, Any]]()
_BASELINE = pytest.StashKey[Results | None]()
_JUDGED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    pytest_gate.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("pytest bench/ needs a package: pip install pytest-benchmark")
    config.stash[_BASELINE] = pytest_gate.check_options(config)
    config.stash[_RECORDS] = {}
    config.stash[_ENVIRONMENT] = environment(_device(config))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "registered" not in metafunc.fixturenames:
        return
    config = metafunc.config
    suites = [name.strip() for name in config.getoption("svilm_suite").split(",")]
    try:
        chosen = benchmarks(suites, _device(config), config.getoption("svilm_only"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    metafunc.parametrize("registered", list(chosen.values()), ids=list(chosen))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return _device(request.config)


@pytest.fixture
def keep(request: pytest.FixtureRequest, registered: Benchmark) -> Any:
    """Stores the record of the running benchmark."""

    def kept(record: Record) -> None:
        request.config.stash[_RECORDS][registered.id] = record

    return kept


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["svilm"] = config.stash[_ENVIRONMENT]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    records = list(config.stash[_RECORDS].values())
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    complete = ended and not session.shouldstop and not session.shouldfail
    written = result(records, config.stash[_ENVIRONMENT], _device(config), None, complete=complete)
    out = config.getoption("svilm_out")
    if out is not None:
        write_json(out, written)
    baseline = config.stash[_BASELINE]
    if baseline is None:
        return
    exit_code, texts = pytest_gate.judged(
        baseline,
        written["environment"],
        records,
        config.getoption("svilm_fail_over"),
        allow_dirty=config.getoption("svilm_allow_dirty"),
    )
    config.stash[_JUDGED] = [f"svilm gate: {exit_code.name}", *texts]
    if exit_code is not ExitCode.OK:
        session.exitstatus = pytest_gate.EXIT_OFFSET + int(exit_code)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(_JUDGED, []):
        terminalreporter.write_line(line)


def _device(config: pytest.Config) -> torch.device:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(config.getoption("svilm_device") or default)
