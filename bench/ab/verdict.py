"""Judges every benchmark from its samples, and the whole run by one exit code."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from svilm_fast.bench.ab.samples import BASE, CONTROL, HEAD, log_ratios
from svilm_fast.bench.ab.session import Measured
from svilm_fast.bench.ab.statistics import Estimate, estimate, holm
from svilm_fast.bench.exit_codes import ExitCode

CONTROL_LEVEL = 0.01

MORE_MEMORY = "more memory"


@dataclass(frozen=True)
class DecisionRule:
    """The limits of a verdict, as fractions (0.01 is one percent).

    Attributes:
        threshold: a change fails when its whole interval lies above this.
        must_see: a change passes only when its whole interval lies below this.
        confidence: of the two-sided intervals.
        allow: ids that may exist on one side only.
    """

    threshold: float = 0.01
    must_see: float = 0.05
    confidence: float = 0.95
    allow: Collection[str] = ()


@dataclass
class BenchmarkVerdict:
    """The verdict on one benchmark; ratios are head's time over base's."""

    id: str
    exit_code: ExitCode
    word: str
    message: str = ""
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    p_slower: float | None = None
    p_slower_holm: float | None = None
    p_faster_holm: float | None = None
    restart_ratios: tuple[float, ...] = ()
    peak_bytes: dict[str, int] = field(default_factory=dict)


@dataclass
class Judgement:
    """All verdicts, the base-against-base checks, and the exit code of the command."""

    exit_code: ExitCode
    verdicts: list[BenchmarkVerdict]
    controls: list[BenchmarkVerdict]
    messages: list[str]


def judge(measured: Measured, rule: DecisionRule) -> Judgement:
    """Judge everything that was measured."""
    if measured.mismatch:
        return Judgement(ExitCode.INCOMPARABLE, [], [], [measured.mismatch])
    verdicts = [*_one_sided(measured, rule), *_without_figure(measured), *_timed(measured, rule)]
    controls = _controls(measured, rule)
    unchecked = measured.plan.controls > 0 and not controls
    exit_code, messages = _overall(verdicts, controls, unchecked)
    return Judgement(exit_code, verdicts, controls, messages)


def _one_sided(measured: Measured, rule: DecisionRule) -> list[BenchmarkVerdict]:
    base, head = set(measured.ids[BASE]), set(measured.ids[HEAD])
    found = []
    for id in sorted(base ^ head):
        side = "base" if id in base else "head"
        exit_code = ExitCode.OK if id in rule.allow else ExitCode.MISSING
        found.append(BenchmarkVerdict(id, exit_code, "missing", f"only in {side}"))
    return found


def _without_figure(measured: Measured) -> list[BenchmarkVerdict]:
    exit_codes = {
        "skipped": ExitCode.OK,
        "missing": ExitCode.MISSING,
        "incomparable": ExitCode.INCOMPARABLE,
    }
    return [
        BenchmarkVerdict(
            id,
            exit_codes.get(failure.kind, ExitCode.FAILED),
            failure.kind,
            failure.message,
        )
        for id, failure in measured.failures.items()
    ]


def _timed(measured: Measured, rule: DecisionRule) -> list[BenchmarkVerdict]:
    ids = [id for id in measured.draws if id not in measured.failures]
    estimates = [estimate(log_ratios(measured.draws[id], HEAD)) for id in ids]
    tail = (1 - rule.confidence) / 2
    least = tail / max(1, len(ids))
    bound = math.log1p(rule.threshold)
    slower = [one.p_above(bound, least) for one in estimates]
    faster = holm([one.p_below(-bound, least) for one in estimates])
    verdicts = []
    for id, one, p, p_slower, p_faster in zip(
        ids, estimates, slower, holm(slower), faster, strict=True
    ):
        verdict = _verdict(id, one, rule)
        verdict.p_slower, verdict.p_slower_holm, verdict.p_faster_holm = p, p_slower, p_faster
        if p_slower <= tail:
            verdict.exit_code, verdict.word = ExitCode.REGRESSION, "slower"
        elif p_faster <= tail:
            verdict.exit_code, verdict.word = ExitCode.OK, "faster"
        _judge_memory(verdict, measured.peaks.get(id, {}))
        verdicts.append(verdict)
    return verdicts


def _verdict(id: str, one: Estimate, rule: DecisionRule) -> BenchmarkVerdict:
    """The verdict from the interval alone: `same` or `undecided`."""
    low, high = (math.exp(end) for end in one.interval(rule.confidence))
    seen = high < 1 + rule.must_see
    verdict = BenchmarkVerdict(
        id, ExitCode.OK if seen else ExitCode.NOISY, "same" if seen else "undecided"
    )
    verdict.ratio = math.exp(one.mean)
    verdict.interval = low, high
    verdict.restart_ratios = tuple(math.exp(value) for value in one.values)
    return verdict


def _judge_memory(verdict: BenchmarkVerdict, peaks: dict[str, int]) -> None:
    """Peaks repeat exactly, so any growth counts, unless base against base differs too."""
    verdict.peak_bytes = peaks
    if not peaks:
        return
    text = f"peak {peaks[BASE]} -> {peaks[HEAD]} bytes"
    if peaks.get(CONTROL, peaks[BASE]) != peaks[BASE]:
        verdict.message = f"{text}, but base against base differs too ({peaks[CONTROL]})"
        if verdict.exit_code == ExitCode.OK:
            verdict.exit_code, verdict.word = ExitCode.NOISY, "undecided"
    elif peaks[HEAD] > peaks[BASE]:
        verdict.message = text
        verdict.word = f"{verdict.word}, {MORE_MEMORY}"
        verdict.exit_code = ExitCode.REGRESSION
    elif peaks[HEAD] < peaks[BASE]:
        verdict.message = text


def _controls(measured: Measured, rule: DecisionRule) -> list[BenchmarkVerdict]:
    """Base against base: the interval must contain 1 and lie within `must_see`."""
    ids = [id for id in measured.controls if id in measured.draws and id not in measured.failures]
    confidence = 1 - CONTROL_LEVEL / max(1, len(ids))
    checks = []
    for id in ids:
        one = estimate(log_ratios(measured.draws[id], CONTROL))
        low, high = (math.exp(end) for end in one.interval(confidence))
        verdict = BenchmarkVerdict(
            id, ExitCode.OK, "same", ratio=math.exp(one.mean), interval=(low, high)
        )
        if not low <= 1 <= high:
            verdict.exit_code, verdict.word = ExitCode.NOISY, "differs from itself"
        elif high >= 1 + rule.must_see or low <= 1 / (1 + rule.must_see):
            verdict.exit_code, verdict.word = ExitCode.NOISY, "too wide"
        checks.append(verdict)
    return checks


def _overall(
    verdicts: list[BenchmarkVerdict], controls: list[BenchmarkVerdict], unchecked: bool
) -> tuple[ExitCode, list[str]]:
    """The first that applies: not comparable, not measured, not trustworthy, slower."""
    count = {exit_code: sum(v.exit_code == exit_code for v in verdicts) for exit_code in ExitCode}
    noisy_controls = [v for v in controls if v.exit_code != ExitCode.OK]
    if count[ExitCode.INCOMPARABLE]:
        text = f"the sides ran different shapes in {count[ExitCode.INCOMPARABLE]} benchmarks"
        return ExitCode.INCOMPARABLE, [text]
    if count[ExitCode.FAILED]:
        return ExitCode.FAILED, [f"{count[ExitCode.FAILED]} gave no figure"]
    if count[ExitCode.MISSING]:
        return ExitCode.MISSING, [f"{count[ExitCode.MISSING]} on one side only"]
    if not any(v.ratio is not None for v in verdicts):
        return ExitCode.MISSING, ["nothing was measured"]
    larger = [
        v.id
        for v in verdicts
        if v.exit_code == ExitCode.REGRESSION and v.word.endswith(MORE_MEMORY)
    ]
    if larger:
        return ExitCode.REGRESSION, [f"more memory: {', '.join(larger)}"]
    if unchecked:
        return ExitCode.NOISY, ["base against base was not measured"]
    if noisy_controls:
        text = f"base against base: {len(noisy_controls)} of {len(controls)} checks failed"
        return ExitCode.NOISY, [text]
    if count[ExitCode.REGRESSION]:
        return ExitCode.REGRESSION, [f"{count[ExitCode.REGRESSION]} slower or larger"]
    if count[ExitCode.NOISY]:
        return ExitCode.NOISY, [
            f"{count[ExitCode.NOISY]} not decided: use more restarts or a quieter machine"
        ]
    return ExitCode.OK, []
