"""Batches in an order fixed by (seed, epoch, position), with workers, exact resume and skips."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from svilm_fast.core.text import counted
from svilm_fast.data.assemble import Assembler, Loaded, Request
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError, WorkerError
from svilm_fast.data.loadable import LoadableDataset
from svilm_fast.data.order import Order, build_order
from svilm_fast.data.pipeline import WorkerPipeline, check_shared_memory
from svilm_fast.data.separate import SeparateOrder
from svilm_fast.data.skips import SkipReport

log = logging.getLogger(__name__)

# Tried for one place of a batch; with a share q of bad samples all fail with probability q^8.
CANDIDATES = 8
STATE_VERSION = 2  # 1: without an order, which was `sort`
_SETTINGS = {"order": "data.order", "window": "data.window"}
_SETTINGS |= {"global_batch": "training.global_batch", "most": "most clips of a source"}


def stand_ins(position: int, start: int, global_batch: int, total: int) -> Iterator[int]:
    """Positions of an epoch that may replace `position` of the batch that begins at `start`.

    First those a multiple of the global batch away, so that ranks that replace samples of one
    batch without talking never take the same one and none that the batch holds already.
    """
    inside = range(start, start + global_batch)
    for step in range(1, total // global_batch + 1):
        candidate = (position + step * global_batch) % total
        if candidate not in inside:
            yield candidate
    for step in range(1, total):
        yield (position + step) % total


class ClipLoader:
    """Iterates over batches of one rank.

    Training: `iter` yields what is left of the current epoch, every batch full, and moves on to
    the next epoch; the tail of an epoch that fills no global batch is left out (another tail every
    epoch). The global batch is a run of the epoch's order and each rank takes its slice, so the
    sequence of global batches does not depend on the number of ranks. Evaluation: `iter` yields
    all samples of the rank's contiguous part in order, the last batch may be smaller, and samples
    that fail are left out.

    `state_dict` after a batch was yielded describes the place behind it, whatever is prefetched.

    Raises:
        DataError: fewer samples than a global batch, or too little shared memory for the workers.
    """

    def __init__(
        self,
        config: DataConfig,
        dataset: LoadableDataset,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"bad batch_size {batch_size} or rank {rank} of {world_size}")
        self.config, self.dataset, self.batch_size = config, dataset, batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.global_batch = batch_size * world_size
        if dataset.train and len(dataset) < self.global_batch:
            raise DataError(
                f"data.{dataset.split} has {counted(len(dataset), 'sample')}, fewer than the "
                f"global batch of {self.global_batch}: lower the batch size or add data"
            )
        # Workers would each fill a cache of their own.
        self.workers = 0 if config.cache == "memory" else config.workers
        self.pin_memory = pin_memory
        self.epoch = 0
        self.position = 0  # samples of this epoch that all ranks together have behind them
        self.skips = SkipReport()  # what was refused while listing is in dataset.report
        if self.workers:
            check_shared_memory(config, dataset)
        self._assembler = Assembler(dataset, seed, self.workers)
        self._stream: Iterator[Loaded] | None = None
        self._order = self._build_order()

    def _build_order(self) -> Order:
        config, dataset = self.config, self.dataset
        if dataset.train and config.same_source == "separate":
            return SeparateOrder(
                self.seed, len(dataset), self.global_batch, most_of_a_source(config, dataset)
            )
        return build_order(
            config.order,
            self.seed,
            len(dataset),
            keys=lambda: torch.tensor(dataset.keys),  # the index is mapped read-only
            shard_samples=dataset.shard_samples,
            window=config.window,
        )

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        if self.dataset.train:
            return len(self.dataset) // self.global_batch
        first, last = self._evaluation_part()
        return -(-(last - first) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if not self.dataset.train:
            yield from self._evaluate()
            return
        if self._stream is None:
            self._stream = self._load(
                training_requests(
                    self._order,
                    len(self.dataset),
                    epoch=self.epoch,
                    position=self.position,
                    batch_size=self.batch_size,
                    rank=self.rank,
                    world_size=self.world_size,
                )
            )
        epoch = self.epoch
        while self.epoch == epoch:
            if self.position + self.global_batch > len(self.dataset):
                self.epoch, self.position = epoch + 1, 0
                return
            batch = self._receive(next(self._stream))
            self.position += self.global_batch
            assert batch is not None
            yield batch

    def forever(self) -> Iterator[Any]:
        """Training batches, epoch after epoch."""
        while True:
            yield from self

    def close(self) -> None:
        """Stop the workers."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()  # type: ignore[attr-defined]

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Where to continue; plain JSON values."""
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            **self._order_state(),
            "samples": len(self.dataset),
            "fingerprint": self.dataset.fingerprint,
            # One rank reads them all: it costs two small reads of every listed file.
            "contents": self.dataset.contents if self.rank == 0 else None,
            "skips": self.skips.state_dict(),
        }

    def _order_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"order": self.config.order}
        if self.config.same_source == "separate":
            most = most_of_a_source(self.config, self.dataset)
            state |= {"order": "separate", "global_batch": self.global_batch, "most": most}
        if self.config.order == "window":
            sizes = self.dataset.shard_samples().astype("<i8").tobytes()
            state |= {
                "window": self.config.window,
                "shards": hashlib.sha256(sizes).hexdigest()[:16],
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last batch of the saved loader, also with other rank counts.

        Raises DataError when seed, order or samples differ: the position would be meaningless.
        """
        if state.get("version") not in (1, STATE_VERSION):
            raise DataError(
                f"the data state has version {state.get('version')!r}, and this code reads "
                f"versions 1 and {STATE_VERSION}: resume with the code that wrote it"
            )
        state = {"order": "sort", **state}
        mine = self.state_dict()
        for name in ("order", "window", "global_batch", "most"):
            if state.get(name) in (None, mine.get(name)):
                continue
            if "separate" in (state[name], mine.get(name)):
                with_or_out = "" if state[name] == "separate" else "out"
                raise DataError(
                    f"the data state was saved with{with_or_out} data.same_source=separate and "
                    "this run has another: resume with the same data.same_source, or start a "
                    "new run"
                )
            raise DataError(
                f"the data state was saved with {_SETTINGS[name]}={state[name]} and this run has "
                f"{mine.get(name)}: set {_SETTINGS[name]}={state[name]} to resume"
            )
        if state.get("shards") != mine.get("shards"):
            raise DataError(
                "the data state was saved with other numbers of samples in the shards, on which "
                "data.order=window depends: resume with the same shards, or start a new run"
            )
        for name in ("seed", "samples", "fingerprint"):
            if state.get(name) != mine[name]:
                raise DataError(
                    f"the data state was saved with {name} {state.get(name)!r} and this run has "
                    f"{mine[name]!r}: resume with the same data and run.seed, or start a new run"
                )
        saved = state.get("contents")  # absent in older states
        if saved is not None and saved != mine["contents"] and self.rank == 0:
            log.warning(
                "videos of data.%s were replaced since the checkpoint: their names are the same, "
                "their sizes or checksums are not; the run continues with what is there now",
                self.dataset.split,
            )
        self.close()
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self.skips.load_state_dict(state["skips"])

    def _evaluation_part(self) -> tuple[int, int]:
        total = len(self.dataset)
        return total * self.rank // self.world_size, total * (self.rank + 1) // self.world_size

    def _evaluate(self) -> Iterator[Any]:
        first, last = self._evaluation_part()
        requests = (
            Request(0, [[index] for index in range(start, min(start + self.batch_size, last))])
            for start in range(first, last, self.batch_size)
        )
        for loaded in self._load(requests):
            batch = self._receive(loaded)
            if batch is not None:
                yield batch

    def _load(self, requests: Iterator[Request]) -> Iterator[Loaded]:
        if not self.workers:
            return (self._assembler[request] for request in requests)
        return made_by_workers(self._assembler, requests, self.config, self.pin_memory)

    def _receive(self, loaded: Loaded) -> Any | None:
        for skip in loaded.skips:
            self.skips.add(skip)
        self.skips.notes.update(loaded.notes)
        self.skips.seen = min(self.skips.seen + loaded.wanted, len(self.dataset))
        if loaded.failure is not None:
            error = WorkerError(loaded.failure[0])
            error.add_note(loaded.failure[1])
            raise error
        limits = self.config.skips
        self.skips.check_budget(limits.fraction, limits.always_allowed)
        return loaded.batch


def most_of_a_source(config: DataConfig, dataset: LoadableDataset) -> int:
    """Clips of the source with most of them. Raises DataError where they do not lie together."""
    if config.order != "permute":
        raise DataError(
            f"data.same_source=separate is an order of its own: it does not go with data.order="
            f"{config.order}; leave that out, or set data.same_source=mask"
        )
    facts = getattr(dataset, "same_source", None)
    if facts is None:
        raise DataError(f"data.same_source=separate: data.{dataset.split} knows no sources")
    if not facts["together"]:
        raise DataError(
            f"data.same_source=separate: the clips of a source do not follow one another in data."
            f"{dataset.split}: sort its list by source (`svilm data convert --group` does) and "
            "pack it again, or set data.same_source=mask"
        )
    return int(facts["most"])


def made_by_workers(
    assembler: Assembler, requests: Iterator[Request], config: DataConfig, pin_memory: bool
) -> Iterator[Loaded]:
    """The batches of a WorkerPipeline, which ends with this generator.

    Neither it nor `requests` may hold the loader: its threads keep them alive until it is closed.
    """
    pipeline = WorkerPipeline(assembler, requests, config, pin=pin_memory)
    try:
        yield from pipeline
    finally:
        pipeline.close()


def training_requests(
    order: Order,
    total: int,
    *,
    epoch: int,
    position: int,
    batch_size: int,
    rank: int,
    world_size: int,
) -> Iterator[Request]:
    """The batches of one rank from a position of an epoch on, epoch after epoch."""
    global_batch = batch_size * world_size
    while True:
        while position + global_batch <= total:
            first = position + rank * batch_size
            places = [
                [p, *islice(stand_ins(p, position, global_batch, total), CANDIDATES - 1)]
                for p in range(first, first + batch_size)
            ]
            rows = order.at(epoch, np.array([p for place in places for p in place]))
            starts = np.cumsum([len(place) for place in places])[:-1]
            yield Request(epoch, [part.tolist() for part in np.split(rows, starts)])
            position += global_batch
        epoch, position = epoch + 1, 0


def build_loader(
    config: DataConfig,
    dataset: LoadableDataset,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    pin_memory: bool = False,
    state: dict[str, Any] | None = None,
) -> ClipLoader:
    """A loader of `batch_size` clips per rank, continuing from `state` where one is given."""
    loader = ClipLoader(
        config,
        dataset,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        pin_memory=pin_memory,
    )
    if state is not None:
        loader.load_state_dict(state)
    return loader
