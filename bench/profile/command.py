"""`svilm profile`: one op, one training step, or an existing trace."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer

from svilm_fast.bench.profile.record import plain as run_plain
from svilm_fast.bench.profile.record import record, tell
from svilm_fast.bench.profile.text import outer_tools
from svilm_fast.bench.suites import benchmarks
from svilm_fast.bench.suites.benchmark import Benchmark
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import Overrides
from svilm_fast.train.ranks.process_group import choose_device

Out = Annotated[Path, typer.Option(help="folder for the trace and the picture of the memory")]
Steps = Annotated[int, typer.Option(min=1, help="calls that are recorded")]
WarmUp = Annotated[int, typer.Option(min=0, help="calls before the recording")]
Stacks = Annotated[bool, typer.Option("--stacks", help="also record Python functions (slower)")]
Plain = Annotated[
    bool, typer.Option("--plain", help="run without torch.profiler, for an external profiler")
]


def op(
    name: Annotated[str, typer.Argument(help="an op, or the whole id of a registered benchmark")],
    case: Annotated[str | None, typer.Option(help="default: the first case for the device")] = None,
    direction: Annotated[str, typer.Option(help="forward, backward or both")] = "both",
    dtype: Annotated[str | None, typer.Option(help="default: that of the benchmark")] = None,
    provider: Annotated[
        str | None, typer.Option(help="fused, reference or a peer; default: ours")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    steps: Steps = 3,
    warm_up: WarmUp = 2,
    out: Out = Path("runs/profile"),
    stacks: Stacks = False,
    plain: Plain = False,
) -> None:
    """Record a registered benchmark: trace, operators, kernels, gaps, memory over time."""
    where = choose_device(device, 0)
    wanted = {"case": case, "direction": direction, "dtype": dtype, "provider": provider}
    chosen = find_benchmark(name, where, wanted)
    prepared = chosen.prepare(where)
    try:
        for _ in range(warm_up):
            prepared.call()
        if plain:
            run_plain(prepared.call, steps=steps, device=where)
            return
        path = out / (chosen.id.replace("/", "_") + ".json.gz")
        print(f"{chosen.id} on {where}")
        path = record(prepared.call, path, steps=steps, device=where, stacks=stacks)
    finally:
        prepared.close()
    tell(path)
    if where.type == "cuda":
        print(outer_tools(_this_command()))


def step(
    config: Annotated[str, typer.Option(help="recipe, as for `svilm pretrain`")],
    overrides: Overrides = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="random clips, so the step does not wait for data")
    ] = False,
    steps: Steps = 3,
    warm_up: WarmUp = 2,
    out: Out = Path("runs/profile"),
    stacks: Stacks = False,
    plain: Plain = False,
) -> None:
    """Record training steps of a recipe, also on many ranks under a launcher (rank 0 prints)."""
    from svilm_fast.bench.profile.step import training_step
    from svilm_fast.train.config.load import load_config
    from svilm_fast.train.plan.resolve import resolve_on_ranks
    from svilm_fast.train.ranks.process_group import joined_ranks

    loaded = load_config(config, overrides or [])
    path = out / "step.json.gz"
    with ExitStack() as stack:
        ranks = stack.enter_context(joined_ranks(loaded.distributed))
        settled, reasons = resolve_on_ranks(loaded, ranks)
        if ranks.is_first and reasons:
            print("\n".join(reasons))
        run = stack.enter_context(training_step(settled, ranks, synthetic=synthetic))
        for _ in range(warm_up):
            run()
        if plain or not ranks.is_first:
            run_plain(run, steps=steps, device=ranks.device)
            return
        print(f"{config} on {ranks.device}, rank 0 of {ranks.world_size}")
        path = record(run, path, steps=steps, device=ranks.device, stacks=stacks)
        on_gpu = ranks.device.type == "cuda"
    tell(path)
    if on_gpu:
        print(outer_tools(_this_command()))


def trace(
    path: Annotated[Path, typer.Argument(help="Chrome trace (.json, .json.gz) of torch.profiler")],
) -> None:
    """Print tables and draw the memory picture of an existing trace."""
    tell(path)


def find_benchmark(name: str, device: torch.device, wanted: dict[str, str | None]) -> Benchmark:
    """The registered benchmark of that id, or of that op with the given parts.

    Returns the first of several, ours before peers. Raises ValueError that lists the choices.
    """
    if "/" in name:
        return next(iter(benchmarks(None, device, name).values()))
    of_op = [b for b in benchmarks(["ops"], device).values() if b.parts["name"] == name]
    if not of_op:
        names = dict.fromkeys(b.parts["name"] for b in benchmarks(["ops"], device).values())
        raise ValueError(f"unknown op {name!r}; registered: {', '.join(names)}")
    for part, value in wanted.items():
        fitting = [b for b in of_op if value is None or b.parts[part] == value]
        if not fitting:
            there = ", ".join(dict.fromkeys(b.parts[part] for b in of_op))
            raise ValueError(f"{name} has no {part} {value!r} on {device.type}; there are: {there}")
        of_op = fitting
    ours = [b for b in of_op if b.parts["provider"] in ("fused", "reference")]
    return (ours or of_op)[0]


def _this_command() -> str:
    arguments = [argument for argument in sys.argv[1:] if argument != "--stacks"]
    return "svilm " + shlex.join(arguments)
