"""`svilm bench dropping`: what token dropping saves of the video encoder's forward and backward."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import Tensor

from svilm_fast.bench.console import wide_console
from svilm_fast.bench.environment import environment, slug
from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.run.command import RESULTS
from svilm_fast.bench.run.file import check_replaceable, write_json
from svilm_fast.bench.tables import terminal_table
from svilm_fast.bench.timing import processor_seconds
from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.models.config import DropConfig
from svilm_fast.models.flops import video_flops
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.token_dropping import PATTERNS, keep_count, select_tokens
from svilm_fast.models.video_encoder import VideoEncoder, VideoOutputs
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.options import Overrides
from svilm_fast.train.config.schema import RunConfig

OUTPUTS = VideoOutputs(groups=False, segments=False)


def dropping(
    overrides: Overrides = None,
    config: Annotated[
        str, typer.Option("--config", "-c", help="recipe: a YAML file or a packaged name")
    ] = "viclip_base",
    clips: Annotated[int, typer.Option(min=1, max=1024, help="clips of a call")] = 1,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="calls of each, taking turns")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="result file; default bench/results/<machine>/dropping.json")
    ] = None,
) -> None:
    """Time the video encoder's forward and backward with and without dropping, in turns.

    Seconds are of the processor (one thread or many). First the encoder with a rate that leaves out
    no token is compared with the plain one, bit for bit. The choice of the kept tokens is timed for
    each pattern, too.
    """
    facts = environment(torch.device("cpu"))
    path = out or RESULTS / slug(facts) / "dropping.json"
    check_replaceable(path)
    recipe = load_config(config, overrides or [])
    result = {"schema": 1, "environment": facts, "config": config, **compare(recipe, clips, rounds)}
    write_json(path, result)
    console = wide_console()
    console.print(_times(result))
    console.print(_selections(result))
    ratios = ", ".join(f"{ratio:.2f}" for ratio in result["ratios"])
    console.print(f"plain / dropping, by round: {ratios}; wrote {path}", soft_wrap=True)


def compare(recipe: RunConfig, clips: int, rounds: int) -> dict[str, Any]:
    """Processor seconds of both encoders in every round, their ratios, and of each selection.

    Raises:
        ValueError: the recipe drops nothing.
        WrongResult: dropping nothing changes a number, or the encoder keeps another number of
            tokens than its rate says.
    """
    video = recipe.video
    if video.drop.rate == 0:
        raise ValueError("the recipe drops no token: set video.drop.rate")
    torch.manual_seed(0)
    encoder = VideoEncoder(video, recipe.model.embed_dim, groups=False)
    initialise(encoder)
    shape = (clips, video.frames, video.image_size, video.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    seeds = StepSeeds(0, 0, torch.arange(clips))
    drops = {"plain": DropConfig(), "dropping": video.drop}

    def step(drop: DropConfig) -> tuple[Tensor, Tensor, int]:
        encoder.config = video.model_copy(update={"drop": drop})
        encoder.zero_grad()
        found = encoder(frames, seeds, OUTPUTS)
        found.video.square().mul(torch.arange(found.video.shape[1])).sum().backward()
        gradient = encoder.embedding.projection.weight.grad
        assert gradient is not None
        return found.video.detach(), gradient.clone(), found.token_ids.shape[1]

    plain = step(drops["plain"])
    nothing = step(video.drop.model_copy(update={"rate": 1e-9, "rate_max": None}))
    if not all(torch.equal(a, b) for a, b in zip(plain[:2], nothing[:2], strict=True)):
        raise WrongResult("dropping no token changes the result", 0.0)
    kept = step(drops["dropping"])[2]
    wanted = keep_count(video.grid, video.drop.rate, video.drop.pattern)
    if kept != wanted:
        raise WrongResult(f"{kept} tokens are kept, {wanted} expected", 0.0)
    seconds: dict[str, list[float]] = {name: [] for name in drops}
    for number in track(range(rounds), description="rounds", transient=True):
        # Either may profit from what the other leaves in the caches: they take turns.
        for name in list(drops) if number % 2 else reversed(drops):
            seconds[name].append(processor_seconds(partial(step, drops[name])))
    ratios = [a / b for a, b in zip(seconds["plain"], seconds["dropping"], strict=True)]
    tokens = {"plain": video.num_tokens, "dropping": kept}
    return {
        "clips": clips,
        "threads": torch.get_num_threads(),
        "grid": list(video.grid),
        "rate": video.drop.rate,
        "pattern": video.drop.pattern,
        "tokens": tokens,
        "flops": {name: clips * _flops(recipe, count).total for name, count in tokens.items()},
        "seconds": seconds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "selection_seconds": _selection_seconds(recipe, frames, seeds, rounds),
    }


def _flops(recipe: RunConfig, tokens: int) -> Any:
    return video_flops(
        recipe.video, recipe.model.embed_dim, tokens=tokens, groups=False, outputs=OUTPUTS
    )


def _selection_seconds(
    recipe: RunConfig, frames: Tensor, seeds: StepSeeds, rounds: int
) -> dict[str, list[float]]:
    """Processor seconds of choosing the kept tokens, by pattern and round."""
    video = recipe.video
    seconds: dict[str, list[float]] = {pattern: [] for pattern in PATTERNS}
    for _ in range(rounds):
        for pattern, taken in seconds.items():
            choose = partial(select_tokens, rate=video.drop.rate, pattern=pattern, frames=frames)
            taken.append(processor_seconds(partial(choose, seeds.at(Site.TOKEN_DROP), video.grid)))
    return seconds


def _times(result: dict[str, Any]) -> Any:
    columns = ("encoder", "tokens", "GFLOP", "processor seconds")
    table = terminal_table(
        columns,
        right=columns[1:],
        title=f"forward and backward of {result['clips']} x {result['tokens']['plain']:,} tokens",
    )
    for name, taken in result["seconds"].items():
        table.add_row(
            name,
            f"{result['tokens'][name]:,}",
            f"{result['flops'][name] / 1e9:,.0f}",
            ", ".join(f"{value:.2f}" for value in taken),
        )
    return table


def _selections(result: dict[str, Any]) -> Any:
    table = terminal_table(
        ("pattern", "ms"), right=("ms",), title="choice of the kept tokens, processor time, median"
    )
    for name, taken in result["selection_seconds"].items():
        table.add_row(name, f"{1e3 * statistics.median(taken):.1f}")
    return table
