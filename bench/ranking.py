"""`svilm bench ranking`: processor time of retrieval ranks, in one pass and by the reference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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
from svilm_fast.evaluation.metrics import QueryRanks, text_to_video_ranks, video_to_text_ranks
from svilm_fast.evaluation.ranking import rank_pairs

TOP = 5
Ranks = tuple[QueryRanks, QueryRanks]


def ranking(
    pairs: Annotated[int, typer.Option(min=2, help="texts and videos")] = 50_000,
    dim: Annotated[int, typer.Option(min=1, help="D, width of an embedding")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="runs of each method, taking turns")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="result file; default bench/results/<machine>/ranking.json")
    ] = None,
) -> None:
    """Rank texts and videos in one float32 pass and by the float64 reference, in turns."""
    facts = environment(torch.device("cpu"))
    path = out or RESULTS / slug(facts) / "ranking.json"
    check_replaceable(path)
    result = {"schema": 1, "environment": facts, **compare(pairs, dim, rounds)}
    write_json(path, result)
    table = terminal_table(
        ("method", "processor seconds"),
        right=("processor seconds",),
        title=f"{pairs:,} texts and videos of width {dim}, equal ranks",
    )
    for name, seconds in result["seconds"].items():
        table.add_row(name, ", ".join(f"{value:.2f}" for value in seconds))
    ratios = ", ".join(f"{ratio:.2f}" for ratio in result["ratios"])
    console = wide_console()
    console.print(table)
    console.print(f"reference / one pass: {ratios}; wrote {path}", soft_wrap=True)


def compare(pairs: int, dim: int, rounds: int) -> dict[str, Any]:
    """Processor seconds of both methods in every round, and their ratios.

    Raises:
        WrongResult: the methods give different ranks.
    """
    texts, videos, owner = _embeddings(pairs, dim)
    methods = {"one pass": _one_pass, "reference": _reference}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in track(range(rounds), description="rounds", transient=True):
        # Either method may profit from what the other leaves in the caches: they take turns.
        found: list[Ranks] = []
        for name in list(methods) if number % 2 else reversed(methods):
            taken, ranks = _timed(methods[name], texts, videos, owner)
            seconds[name].append(taken)
            found.append(ranks)
        _check_equal(*found)
    ratios = [slow / fast for fast, slow in zip(seconds["one pass"], seconds["reference"])]
    return {
        "pairs": pairs,
        "dim": dim,
        "top": TOP,
        "seconds": seconds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    }


def _embeddings(pairs: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors of a model that finds about half of the videos, and the owner of every text."""
    generator = torch.Generator().manual_seed(0)
    videos = torch.nn.functional.normalize(torch.randn(pairs, dim, generator=generator))
    owner = torch.randperm(pairs, generator=generator)
    noise = torch.randn(pairs, dim, generator=generator)
    texts = torch.nn.functional.normalize(videos[owner] + 0.25 * noise)
    return texts, videos, owner


def _one_pass(texts: Tensor, videos: Tensor, owner: Tensor) -> Ranks:
    found = rank_pairs(texts, videos, owner, top=TOP)
    return found.text_to_video, found.video_to_text


def _reference(texts: Tensor, videos: Tensor, owner: Tensor) -> Ranks:
    """Two float64 products for the ranks and a float32 one for the best matches."""
    ranks = text_to_video_ranks(texts, videos, owner), video_to_text_ranks(texts, videos, owner)
    rows = max(1, 4_194_304 // len(videos))
    for start in range(0, len(texts), rows):
        (texts[start : start + rows] @ videos.T).topk(min(TOP, len(videos)), dim=1)
    return ranks


def _timed(
    method: Callable[[Tensor, Tensor, Tensor], Ranks], *inputs: Tensor
) -> tuple[float, Ranks]:
    before = time.process_time()
    ranks = method(*inputs)
    return time.process_time() - before, ranks


def _check_equal(left: Ranks, right: Ranks) -> None:
    for name, a, b in zip(("text to video", "video to text"), left, right):
        wrong = int(((a.higher != b.higher) | (a.ties != b.ties)).sum())
        if wrong:
            raise WrongResult(f"{wrong} ranks differ, {name}", float(wrong))
