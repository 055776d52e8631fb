"""`svilm bench ab`: is the head slower than the base?"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Annotated, Literal

import typer

from svilm_fast.bench.ab.gate import Comparison, ComparisonRequest, compare
from svilm_fast.bench.ab.process import SUITES_MODULE
from svilm_fast.bench.ab.session import MeasurementPlan
from svilm_fast.bench.ab.verdict import BenchmarkVerdict, DecisionRule
from svilm_fast.bench.console import wide_console
from svilm_fast.bench.environment import ROOT
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.run.command import chosen_device
from svilm_fast.bench.run.file import check_replaceable, write_json
from svilm_fast.bench.tables import terminal_table
from svilm_fast.bench.units import percent
from svilm_fast.core.console import Console
from svilm_fast.core.messages import single_line

DEFAULT = MeasurementPlan()
# CUDA does not survive a fork: on a GPU more pairs in one process replace the renewals.
CUDA_PAIRS = 40


def ab(
    base: Annotated[str, typer.Option(help="Branch, tag or commit to compare against.")],
    head: Annotated[
        str | None, typer.Option(help="Branch, tag or commit under test; default: working tree.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Suites, separated by commas; default: all.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Only ids that match this pattern.")] = None,
    restarts: Annotated[int, typer.Option(min=2, help="Sets of processes.")] = DEFAULT.restarts,
    renewals: Annotated[
        int | None, typer.Option(min=0, help="Forks per process; default 0 on CUDA.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Pairs in each renewal.")] = None,
    threshold: Annotated[str, typer.Option(help="Slower by more than this fails.")] = "1%",
    must_see: Annotated[
        str, typer.Option(help="Passes only if a slowdown above this is ruled out.")
    ] = "5%",
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Confidence of the two-sided intervals.")
    ] = 0.95,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: cuda if available.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more than 1: unpinned.")] = 1,
    controls: Annotated[
        int, typer.Option(min=0, help="Number of benchmarks also measured base against base.")
    ] = DEFAULT.controls,
    bench_from: Annotated[
        Literal["head", "own"],
        typer.Option(help="Version whose benchmark code measures base's library."),
    ] = "head",
    allow: Annotated[
        list[str] | None, typer.Option(help="Id that may be on one side only (repeat).")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, max=1e6, help="Seconds for one request.")
    ] = DEFAULT.timeout_s,
    seed: Annotated[int, typer.Option(help="Seed of all random orders.")] = 0,
    aa: Annotated[bool, typer.Option("--aa", help="Compare the base with itself.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON with all samples.")] = None,
    repository: Annotated[Path, typer.Option(help="Clone that contains both versions.")] = ROOT,
    module: Annotated[str, typer.Option(hidden=True)] = SUITES_MODULE,
) -> None:
    """Time two versions in interleaved pairs; report for each benchmark whether head is slower.

    Exit status: 0 not slower, 1 slower or larger, 2 wrong usage, 3 sides cannot be compared,
    4 a benchmark is on one side only, 5 a side gave no figure, 6 the machine is too noisy to tell.
    """
    if aa and head is not None:
        raise typer.BadParameter("--aa compares the base with itself: leave --head out")
    if out is not None:
        check_replaceable(out)
    where = chosen_device(device)
    cuda = where.type == "cuda"
    plan = MeasurementPlan(
        restarts=restarts,
        renewals=(0 if cuda else DEFAULT.renewals) if renewals is None else renewals,
        pairs=(CUDA_PAIRS if cuda else DEFAULT.pairs) if pairs is None else pairs,
        controls=controls,
        timeout_s=timeout,
        pinned=threads == 1,
        seed=seed,
    )
    if cuda and plan.renewals:
        raise typer.BadParameter("--renewals forks processes, which CUDA does not survive: use 0")
    rule = DecisionRule(fraction(threshold), fraction(must_see), confidence, tuple(allow or ()))
    if rule.must_see <= rule.threshold:
        raise typer.BadParameter("--must-see must be larger than --threshold")
    request = ComparisonRequest(
        repository=repository.resolve(),
        base=base,
        head=head,
        itself=aa,
        suites=None if suite is None else [name.strip() for name in suite.split(",")],
        only=only,
        device=where.type,
        threads=threads,
        bench_from=bench_from,
        module=module,
        plan=plan,
        rule=rule,
    )
    console = wide_console()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        comparison = compare(request, lambda line: _say(console, line))
    except (ValueError, subprocess.TimeoutExpired) as error:
        raise typer.BadParameter(single_line(error, None)) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if out is not None:
        write_json(out, comparison.as_json())
    show(comparison, console)
    raise typer.Exit(int(comparison.judgement.exit_code))


def fraction(text: str) -> float:
    """`2%` or `2.5%` as a fraction.

    Raises `typer.BadParameter` for anything else: a bare 0.9 could mean 0.9 % or 90 %.
    """
    try:
        value = percent(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if value >= 1:
        raise typer.BadParameter(f"{text} is not below 100%")
    return value


def show(comparison: Comparison, console: Console) -> None:
    """Print all verdicts, the worst last, and the exit code."""
    judgement = comparison.judgement
    figures = ("head / base", "interval")
    table = terminal_table(("benchmark", *figures, "verdict"), right=figures)
    order = {exit_code: place for place, exit_code in enumerate(ExitCode)}
    for verdict in sorted(judgement.verdicts, key=lambda one: order[one.exit_code]):
        table.add_row(verdict.id, *_figures(verdict), f"{verdict.word} {verdict.message}".strip())
    for verdict in judgement.controls:
        table.add_row(f"base against base: {verdict.id}", *_figures(verdict), verdict.word)
    console.print(table)
    code = f"{judgement.exit_code.name} ({int(judgement.exit_code)})"
    _say(console, ": ".join([code, *judgement.messages]))


def _figures(verdict: BenchmarkVerdict) -> tuple[str, str]:
    if verdict.ratio is None or verdict.interval is None:
        return "-", "-"
    low, high = (100 * (end - 1) for end in verdict.interval)
    return f"{100 * (verdict.ratio - 1):+.2f}%", f"{low:+.2f}% to {high:+.2f}%"


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _end(number: int, frame: object) -> None:
    """Exit through the clean-up, which removes worktrees and workers."""
    raise SystemExit(128 + number)
