"""Several ranks that have one data set open, each with a worker: time and memory by samples."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from svilm_fast.bench.data_index.made import WORDS, make
from svilm_fast.bench.data_index.rank import rank
from svilm_fast.data.tokenizer import Tokenizer

RANKS = 8
EMPTY = 1000  # samples of the data set whose processes count as empty ones
SIZES = (100_000, 1_000_000, 10_000_000)
# The reader before this index, whose tables were Python objects: seconds and MB of opening a split
# and its clips, MB handed to a worker. Measured on two cores with small captions and stored nouns.
EARLIER = (
    {"samples": 10_000, "open_s": 3.05, "rank_bytes": 87e6, "pickle_bytes": 2.9e6},
    {"samples": 100_000, "open_s": 26.3, "rank_bytes": 576e6, "pickle_bytes": 29e6},
    {"samples": 1_000_000, "open_s": 207.6, "rank_bytes": 3829e6, "pickle_bytes": 295e6},
)
EARLIER_WORKER_BYTES = 2400  # a sample, in every worker


@dataclass(frozen=True)
class Opened:
    """Medians over the ranks; bytes are of one process, beyond one with an empty data set.

    private: anonymous memory and pages of files that no other process has mapped. pss: the share of
    all memory, pages of the index among it. row_s: CPU time of drawing a
    row's numbers, looking it up and tokenising its texts.
    """

    samples: int
    index_bytes: int
    make_s: float
    open_s: float
    row_s: float
    pickle_bytes: int
    rank_private: int
    rank_pss: int
    worker_private: int
    worker_pss: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(sizes: Sequence[int], folder: Path | None = None) -> Iterator[Opened]:
    """Measure one size after the other. folder: where an index is made, and removed again."""
    empty: dict[str, float] | None = None
    for samples in (EMPTY, *sizes):
        with tempfile.TemporaryDirectory(dir=folder, prefix="svilm-data-index-") as place:
            began = time.perf_counter()
            path = make(Path(place) / "shards", samples)
            made, size = time.perf_counter() - began, path.stat().st_size
            found = _median(_ranks(path.parent, Path(place)))
        if empty is None:
            empty = found
            continue
        beyond = {
            f"{process}_{kind}": round(found[f"{process}_{kind}"] - empty[f"{process}_{kind}"])
            for process in ("rank", "worker")
            for kind in ("private", "pss")
        }
        handed = int(found["pickle_bytes"])
        yield Opened(samples, size, made, found["open_s"], found["row_s"], handed, **beyond)


def _ranks(folder: Path, place: Path) -> list[dict[str, Any]]:
    """Open one rank after the other, let all draw, and look at all while all have it open."""
    tokenizer = place / "tokenizer.json"
    Tokenizer.train(WORDS).save(tokenizer)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["svilm_fast.bench.data_index.rank"])
    pipes, processes = [], []
    for number in range(RANKS):
        mine, theirs = context.Pipe()
        arguments = (str(folder), str(tokenizer), number, theirs)
        processes.append(context.Process(target=rank, args=arguments))
        processes[-1].start()
        pipes.append(mine)
    try:
        for pipe in pipes:
            pipe.send(True)
            pipe.recv()
        found = []
        for pipe in pipes:
            pipe.send(True)
            found.append(pipe.recv())
        for pipe in pipes:
            pipe.send(False)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    return found


def _median(found: list[dict[str, Any]]) -> dict[str, float]:
    values = {name: [each[name] for each in found] for name in ("open_s", "row_s", "pickle_bytes")}
    for process in ("rank", "worker"):
        for kind in ("private", "pss"):
            values[f"{process}_{kind}"] = [each[process][kind] for each in found]
    return {name: statistics.median(each) for name, each in values.items()}
