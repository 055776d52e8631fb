"""Judges each id of two runs: slower, noisy, failed, missing or fine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from svilm_fast.bench.environment import MUST_MATCH
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.intervals import bootstrap_interval
from svilm_fast.bench.run.file import Results
from svilm_fast.bench.run.record import Record

LEVEL = 0.99
LEAST_SAMPLES = 5  # resampling fewer underestimates the spread
# From best to worst: a command ends with the worst code of its ids.
SEVERITY = (
    ExitCode.OK,
    ExitCode.NOISY,
    ExitCode.REGRESSION,
    ExitCode.MISSING,
    ExitCode.FAILED,
    ExitCode.INCOMPARABLE,
)


@dataclass(frozen=True)
class IdVerdict:
    """One id: both medians in milliseconds, their ratio with its interval, and the exit code."""

    id: str
    exit_code: ExitCode
    note: str = ""
    before_ms: float | None = None
    after_ms: float | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    before_bytes: int | None = None
    after_bytes: int | None = None

    @property
    def compared(self) -> bool:
        """Whether there are two times to compare."""
        return self.ratio is not None


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The facts of `MUST_MATCH` in which two environments differ."""
    return [
        f"{name}: {before.get(name)} / {after.get(name)}"
        for name in MUST_MATCH
        if before.get(name) != after.get(name)
    ]


def refusal(before: Results, after: Results, dirty_option: str | None) -> str | None:
    """Why two runs cannot be compared; None if they can.

    Args:
        dirty_option: the option that accepts a baseline of uncommitted code; None if it is given.
    """
    for run in (before, after):
        if not run.complete:
            return f"{run.path} is incomplete: the run was stopped; measure again"
    if not before.fingerprint or before.fingerprint != after.fingerprint:
        facts = "; ".join(differences(before.environment, after.environment))
        reason = facts or "a fingerprint is missing or was computed from other facts"
        return f"the baseline is of another machine or version: {reason}"
    if before.dirty and dirty_option is not None:
        return (
            f"the baseline {before.path} was measured on uncommitted code, so it cannot be "
            f"reproduced. Commit and measure again, or give {dirty_option}"
        )
    return None


def judge(
    before: Results,
    after: Results,
    *,
    limit: float,
    memory_limit: float = 0.0,
    allow_new: bool = False,
) -> list[IdVerdict]:
    """One line per id of either run, the worst first, then the slowest.

    Args:
        limit: how much slower the median may be, as a fraction.
        memory_limit: the same for `peak_extra_bytes`, which repeats exactly.
        allow_new: accept an id without a baseline, as in the change that adds it.
    """
    lines = []
    for id in [*before.records, *(id for id in after.records if id not in before.records)]:
        old, new = before.records.get(id), after.records.get(id)
        if new is None:
            lines.append(IdVerdict(id, ExitCode.MISSING, "vanished: only the baseline has it"))
        elif old is None:
            exit_code = ExitCode.OK if allow_new and new.time_ms else ExitCode.MISSING
            lines.append(IdVerdict(id, exit_code, "new: the baseline does not have it"))
        else:
            lines.append(_judge_pair(id, old, new, limit, memory_limit))
    return sorted(lines, key=lambda line: (-SEVERITY.index(line.exit_code), -(line.ratio or 0)))


def overall(lines: list[IdVerdict]) -> ExitCode:
    """The worst exit code; MISSING if no pair of figures was compared."""
    worst = max((line.exit_code for line in lines), key=SEVERITY.index)
    if worst is ExitCode.OK and not any(line.compared for line in lines):
        return ExitCode.MISSING
    return worst


def ratio_interval(before: list[float], after: list[float]) -> tuple[float, float]:
    """Bootstrap interval (99 %) of median(after) / median(before), from independent samples."""

    def ratio(before: np.ndarray, after: np.ndarray, axis: int) -> np.ndarray:
        return np.median(after, axis=axis) / np.median(before, axis=axis)

    return bootstrap_interval([before, after], ratio, LEVEL)


def _judge_pair(id: str, old: Record, new: Record, limit: float, memory_limit: float) -> IdVerdict:
    if old.skipped and new.skipped:
        return IdVerdict(id, ExitCode.OK, f"{new.status} (in both)")
    if new.skipped:
        return IdVerdict(id, ExitCode.MISSING, f"measured in the baseline, now {new.status}")
    before_ms, after_ms = old.time_ms, new.time_ms
    if after_ms is None:
        return IdVerdict(id, ExitCode.FAILED, f"no figure: {new.status}")
    if before_ms is None:
        return IdVerdict(
            id,
            ExitCode.MISSING if old.skipped else ExitCode.FAILED,
            f"no figure in the baseline: {old.status}",
        )
    if old.clock != new.clock:
        clocks = f"{old.clock or 'unknown'} / {new.clock or 'unknown'}"
        return IdVerdict(id, ExitCode.INCOMPARABLE, f"timed by different clocks: {clocks}")
    samples = [
        list(record.samples_ms) or [middle]
        for record, middle in (
            (old, before_ms),
            (new, after_ms),
        )
    ]
    ratio, interval = after_ms / before_ms, ratio_interval(*samples)
    exit_code, notes = ExitCode.OK, []
    if min(map(len, samples)) < LEAST_SAMPLES and before_ms != after_ms:
        exit_code = ExitCode.NOISY
        notes.append(f"fewer than {LEAST_SAMPLES} samples")
    elif ratio > 1 + limit:
        certain = interval[0] > 1
        exit_code = ExitCode.REGRESSION if certain else ExitCode.NOISY
        notes.append("slower" if certain else "undecided: the interval contains 1")
    memory, note = _judge_memory(old, new, memory_limit)
    if note:
        notes.append(note)
    return IdVerdict(
        id,
        max(exit_code, memory, key=SEVERITY.index),
        "; ".join(notes),
        before_ms,
        after_ms,
        ratio,
        interval,
        old.peak_extra_bytes,
        new.peak_extra_bytes,
    )


def _judge_memory(old: Record, new: Record, limit: float) -> tuple[ExitCode, str]:
    before, after = old.peak_extra_bytes, new.peak_extra_bytes
    if before is None:
        return ExitCode.OK, ""
    if after is None:
        return ExitCode.MISSING, "the baseline has a memory peak, this run has none"
    if after > before * (1 + limit):
        return ExitCode.REGRESSION, f"needs {after - before:,} bytes more"
    return ExitCode.OK, ""
