"""The options and the gate that `pytest bench/` adds to pytest-benchmark.

pytest-benchmark's own `--benchmark-compare-fail` passes if an id is missing, if the baseline is of
another machine, and if the run was disabled (as under xdist); it takes whole percents only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from svilm_fast.bench.compare.verdict import IdVerdict, judge, overall, refusal
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.run.file import Results, read_results, same_file
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.units import limited_time, percent

# Above pytest's own exit statuses (0 to 5): 11 regression, 13 incomparable, 14 missing, ...
EXIT_OFFSET = 10
_INSTEAD = "use --svilm-baseline FILE --svilm-fail-over 5%"


def add_options(parser: pytest.Parser) -> None:
    """The options of `pytest bench/`."""
    group = parser.getgroup("svilm", "svilm-fast benchmarks")
    group.addoption("--svilm-suite", default="ops,blocks,step,data,host", help="suites to run")
    group.addoption("--svilm-only", default=None, help="only ids that match this shell pattern")
    group.addoption("--svilm-device", default=None, help="cpu or cuda; default: cuda if available")
    group.addoption("--svilm-budget", type=limited_time, default=0.3, help="seconds per benchmark")
    group.addoption("--svilm-out", type=Path, default=None, help="write the records to this file")
    group.addoption(
        "--svilm-baseline", type=Path, default=None, help="records to compare this run with"
    )
    group.addoption(
        "--svilm-fail-over", default=None, help="how much slower a median may be, such as 5.5%%"
    )
    group.addoption(
        "--svilm-allow-dirty", action="store_true", help="accept a baseline of uncommitted code"
    )


def check_options(config: pytest.Config) -> Results | None:
    """Read the baseline before anything is measured or written; None if none is named.

    Raises:
        pytest.UsageError: for options under which the gate would pass without measuring; pytest
            ends with status 4.
    """
    baseline, limit = config.getoption("svilm_baseline"), config.getoption("svilm_fail_over")
    if config.getoption("benchmark_compare_fail", None):
        raise pytest.UsageError(
            "--benchmark-compare-fail misses vanished ids and baselines of another machine: "
            + _INSTEAD
        )
    if (baseline is None) != (limit is None):
        raise pytest.UsageError(f"--svilm-baseline and --svilm-fail-over go together: {_INSTEAD}")
    if baseline is None:
        return None
    try:
        percent(limit)
        results = read_results(baseline)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    out = config.getoption("svilm_out")
    if out is not None and same_file(out, baseline):
        raise pytest.UsageError(
            f"--svilm-out would overwrite the baseline {baseline}: name another file"
        )
    reason = why_disabled(config)
    if reason is not None:
        raise pytest.UsageError(
            f"--svilm-baseline needs measurements, but benchmarks are disabled: {reason}"
        )
    return results


def why_disabled(config: pytest.Config) -> str | None:
    """Why pytest-benchmark would not time the benchmarks; None if it would."""
    for name in ("benchmark_disable", "benchmark_skip"):
        if config.getoption(name, None):
            return f"--{name.replace('_', '-')} is given"
    distributed = config.getoption("dist", "no") != "no" or "PYTEST_XDIST_WORKER" in os.environ
    if distributed or config.getoption("numprocesses", None) or config.getoption("tx", None):
        return "xdist runs them in parallel (leave -n out)"
    if config.getoption("collectonly", None):
        return "--collect-only is given"
    return None


def judged(
    baseline: Results,
    environment: Mapping[str, Any],
    records: Iterable[Record],
    limit: str,
    *,
    allow_dirty: bool = False,
) -> tuple[ExitCode, list[str]]:
    """The exit code of a run against its baseline, and the reasons why it does not pass."""
    found = Results(baseline.path, environment, {}, {record.id: record for record in records})
    reason = refusal(baseline, found, None if allow_dirty else "--svilm-allow-dirty")
    if reason is not None:
        return ExitCode.INCOMPARABLE, [reason]
    lines = judge(baseline, found, limit=percent(limit))
    exit_code = overall(lines)
    texts = [_text(line) for line in lines if line.exit_code is not ExitCode.OK]
    if exit_code is ExitCode.MISSING and not texts:
        texts = ["no benchmark was compared"]
    return exit_code, texts


def _text(line: IdVerdict) -> str:
    change = "" if line.ratio is None else f" ({line.ratio - 1:+.1%})"
    return f"{line.exit_code.name} {line.id}{change}: {line.note}"
