"""`svilm bench compare`: compares a run with a stored one of the same machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.bench.compare.verdict import IdVerdict, judge, overall, refusal
from svilm_fast.bench.console import wide_console
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.run.file import read_results, same_file
from svilm_fast.bench.tables import markdown_row, markdown_table, terminal_table
from svilm_fast.bench.units import percent
from svilm_fast.core.earlier_result import check_replaceable
from svilm_fast.core.terminal import print

_NUMBERS = ("before, ms", "after, ms", "change", "99 %", "memory")
_COLUMNS = ("benchmark", *_NUMBERS, "verdict")


def compare(
    baseline: Annotated[Path, typer.Argument(help="result file of `svilm bench run`: before")],
    changed: Annotated[Path, typer.Argument(help="result file of the same machine: after")],
    fail_over: Annotated[
        str, typer.Option("--fail-over", help="how much slower a median may be, such as 5.5%")
    ] = "5%",
    memory_over: Annotated[
        str, typer.Option("--memory-over", help="how much more memory a call may need")
    ] = "0%",
    allow_dirty: Annotated[
        bool, typer.Option("--allow-dirty", help="accept a baseline of uncommitted code")
    ] = False,
    allow_new: Annotated[
        bool, typer.Option("--allow-new", help="accept ids that the baseline lacks")
    ] = False,
    markdown: Annotated[
        Path | None, typer.Option(help="also write the table as Markdown, for a comment")
    ] = None,
) -> None:
    """Compare two result files of one machine, id by id.

    The verdict holds only if the machine was quiet in both runs. To judge a change, use
    `svilm bench ab`, which measures both versions in turn.

    Exit status: 0 fine, 1 slower or more memory, 2 wrong usage, 3 not comparable, 4 an id is
    missing or new, 5 a benchmark gave no figure, 6 too noisy to tell.
    """
    limit, memory_limit = percent(fail_over), percent(memory_over)
    if markdown is not None:
        check_replaceable(markdown, markdown_row(_COLUMNS))
    before, after = read_results(baseline), read_results(changed)
    if same_file(baseline, changed):
        raise ValueError(f"{baseline} and {changed} are the same file: name two different runs")
    reason = refusal(before, after, None if allow_dirty else "--allow-dirty")
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
        raise typer.Exit(int(ExitCode.INCOMPARABLE))
    lines = judge(before, after, limit=limit, memory_limit=memory_limit, allow_new=allow_new)
    exit_code = overall(lines)
    _print(lines)
    verdict = _summary(lines, exit_code, fail_over)
    print(verdict)
    if markdown is not None:
        markdown.write_text(as_markdown(lines, verdict))
    raise typer.Exit(int(exit_code))


def as_markdown(lines: list[IdVerdict], verdict: str) -> str:
    """The table for a comment on a change."""
    rows = [[f"`{line.id}`", *_cells(line)] for line in lines]
    return "\n".join([f"**{verdict}**", "", *markdown_table(_COLUMNS, rows, right=_NUMBERS), ""])


def _print(lines: list[IdVerdict]) -> None:
    table = terminal_table(_COLUMNS, right=_NUMBERS)
    for line in lines:
        colour = {ExitCode.OK: "", ExitCode.NOISY: "yellow"}.get(line.exit_code, "red")
        table.add_row(line.id, *_cells(line), style=colour)
    wide_console(190).print(table)


def _cells(line: IdVerdict) -> list[str]:
    verdict = f"{line.exit_code.name.lower()}{': ' if line.note else ''}{line.note}"
    if line.ratio is None or line.interval is None:
        return ["", "", "", "", "", verdict]
    low, high = line.interval
    return [
        f"{line.before_ms:.4g}",
        f"{line.after_ms:.4g}",
        f"{line.ratio - 1:+.1%}",
        f"{low - 1:+.1%} .. {high - 1:+.1%}",
        _memory(line),
        verdict,
    ]


def _memory(line: IdVerdict) -> str:
    if line.before_bytes is None or line.after_bytes is None:
        return ""
    if not line.before_bytes:
        return f"{line.after_bytes:,} B"
    return f"{line.after_bytes / line.before_bytes - 1:+.1%}"


def _summary(lines: list[IdVerdict], exit_code: ExitCode, fail_over: str) -> str:
    compared = sum(line.compared for line in lines)
    counted = {each: sum(line.exit_code is each for line in lines) for each in ExitCode}
    listed = ", ".join(
        f"{number} {each.name.lower()}" for each, number in counted.items() if number and each
    )
    if exit_code is ExitCode.MISSING and not listed:
        listed = "no benchmark has figures in both files"
    head = f"{compared} of {len(lines)} benchmarks compared at {fail_over}"
    return f"{head}: {listed or 'none is slower'} (exit status {int(exit_code)})"
