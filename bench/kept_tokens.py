"""`svilm bench kept-tokens`: compressed clips decoded whole, and for the kept tokens alone."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from svilm_fast.bench.console import wide_console
from svilm_fast.bench.environment import environment, slug
from svilm_fast.bench.run.command import RESULTS
from svilm_fast.bench.run.file import check_replaceable, write_json
from svilm_fast.bench.suites import palettes
from svilm_fast.bench.tables import terminal_table
from svilm_fast.bench.timing import processor_seconds


def kept_tokens(
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="calls of each, in turns")] = 15,
    out: Annotated[
        Path | None,
        typer.Option(help="result file; default bench/results/<machine>/kept-tokens.json"),
    ] = None,
) -> None:
    """Time decoding of compressed clips, whole and for the kept tokens alone, in turns.

    Seconds are of the processor. The calls are those of `svilm bench run --suite data --only
    'data/palettes/*'`; first both are compared, byte for byte.
    """
    facts = environment(torch.device("cpu"))
    path = out or RESULTS / slug(facts) / "kept-tokens.json"
    check_replaceable(path)
    result = {"schema": 1, "environment": facts, **compare(rounds)}
    write_json(path, result)
    console = wide_console()
    console.print(_table(result))
    console.print(f"wrote {path}", soft_wrap=True)


def compare(rounds: int) -> dict[str, Any]:
    """Processor seconds of all calls in every round, and whole / kept by kind of code.

    Raises WrongResult where both differ.
    """
    calls = {case: palettes.prepare(case) for case in palettes.CASES}
    for case in calls.values():
        case.verify()
        case.call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        # Each may profit from what the one before leaves in the caches: they take turns.
        for name in list(calls) if number % 2 else reversed(calls):
            seconds[name].append(processor_seconds(calls[name].call))
    ratios = {
        block: [
            whole / kept
            for whole, kept in zip(seconds[f"{block}_whole"], seconds[f"{block}_kept"], strict=True)
        ]
        for block in palettes.BLOCKS
    }
    return {
        **palettes.SIZES,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "seconds": seconds,
        "ratios": ratios,
        "median_ratio": {block: statistics.median(found) for block, found in ratios.items()},
    }


def _table(result: dict[str, Any]) -> Any:
    columns = ("codes", "whole, ms", "kept, ms", "whole / kept, lowest to highest")
    table = terminal_table(columns, right=columns[1:], title="processor time, medians")
    for block, ratios in result["ratios"].items():
        whole, kept = (
            1e3 * statistics.median(result["seconds"][f"{block}_{part}"])
            for part in ("whole", "kept")
        )
        ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        table.add_row(block, f"{whole:.1f}", f"{kept:.1f}", ratio)
    return table
