"""Batches in an order fixed by (seed, epoch, position), with workers, exact resume and skips."""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from svilm_fast.core.messages import single_line
from svilm_fast.core.philox import derive_seeds
from svilm_fast.core.text import counted
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import Clip, ClipDataset
from svilm_fast.data.errors import DataError, WorkerError
from svilm_fast.data.main_module import main_module_hidden
from svilm_fast.data.skips import Skip, SkipReport

log = logging.getLogger(__name__)

ORDER_SITE = 100  # a stream of its own beside those of kernels.philox.Site
# Tried for one place of a batch; with a share q of bad samples all fail with probability q^8.
CANDIDATES = 8
STATE_VERSION = 1


class Request(NamedTuple):
    """A batch to load: for every place the sample, then those that may stand in for it."""

    epoch: int
    candidates: list[list[int]]


class Loaded(NamedTuple):
    """What a worker hands back; `failure` is a one-line message and a traceback."""

    batch: ClipBatch | None
    skips: list[Skip]
    notes: list[str]
    failure: tuple[str, str] | None


def epoch_order(keys: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """The order int64 [n] in which an epoch visits the samples with these keys."""
    return torch.argsort(derive_seeds(seed, epoch, keys, ORDER_SITE), stable=True)


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


class _Assembler(Dataset):
    """Runs in a worker: turns requests into batches and replaces samples that fail."""

    def __init__(self, dataset: ClipDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, request: Request) -> Loaded:
        skips: list[Skip] = []
        dataset, epoch = self.dataset, request.epoch
        wanted = [places[0] for places in request.candidates]
        draws: Sequence[Any] = [None] * len(wanted)
        if dataset.train:
            draws = dataset.draws(wanted, self.seed, epoch)
        clips = []
        try:
            for places, draw in zip(request.candidates, draws):
                clip = self._first_that_loads(places, draw, epoch, skips)
                if clip is not None:
                    clips.append(clip)
            batch = dataset.collate(clips) if clips else None
        except DataError as error:
            return Loaded(None, skips, [], (str(error), traceback.format_exc()))
        return Loaded(batch, skips, [note for clip in clips for note in clip.notes], None)

    def _first_that_loads(
        self, places: list[int], draw: Any, epoch: int, skips: list[Skip]
    ) -> Clip | None:
        dataset = self.dataset
        for attempt, index in enumerate(places):
            if attempt:
                draw = dataset.draws([index], self.seed, epoch)[0]
            try:
                return dataset.clip(index, draw)
            except DataError as error:
                skips.append(Skip.of(dataset.ids[index], error))
            except Exception as error:
                name = dataset.ids[index]
                raise WorkerError(
                    f"sample {name!r}: unexpected {type(error).__name__}: {single_line(error)}"
                ) from error
        if not dataset.train:
            return None
        last = skips[-1]
        raise WorkerError(
            f"{counted(len(places), 'sample')} in a row cannot be loaded; the last was "
            f"{last.sample!r}: "
            f"{last.message}"
        )


class ClipLoader:
    """Iterates over batches of one rank.

    Training: `iter` yields what is left of the current epoch, every batch full, and moves on to
    the next epoch; the tail of an epoch that fills no global batch is left out (another tail every
    epoch). The global batch is a run of the epoch's order and each rank takes its slice, so the
    sequence of global batches does not depend on the number of ranks. Evaluation: `iter` yields
    all samples of the rank's contiguous part in order, the last batch may be smaller, and samples
    that fail are left out.

    `state_dict` after a batch was yielded describes the place behind it, whatever is prefetched.
    """

    def __init__(
        self,
        config: DataConfig,
        dataset: ClipDataset,
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
                "global "
                f"batch of {self.global_batch}: lower the batch size or add data"
            )
        # Workers would each fill a cache of their own.
        self.workers = 0 if config.cache == "memory" else config.workers
        self.pin_memory = pin_memory
        self.epoch = 0
        self.position = 0  # samples of this epoch that all ranks together have behind them
        self.skips = SkipReport()  # what was refused while listing is in dataset.report
        self._assembler = _Assembler(dataset, seed)
        self._pending: deque[Request] = deque()
        self._stream: Iterator[Loaded] | None = None
        self._order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        if self.dataset.train:
            return len(self.dataset) // self.global_batch
        first, last = self._evaluation_part()
        return -(-(last - first) // self.batch_size)

    def __iter__(self) -> Iterator[ClipBatch]:
        if not self.dataset.train:
            yield from self._evaluate()
            return
        if self._stream is None:
            self._stream = self._load(self._training_requests())
        epoch = self.epoch
        while self.epoch == epoch:
            if self.position + self.global_batch > len(self.dataset):
                self.epoch, self.position = epoch + 1, 0
                return
            batch = self._receive(next(self._stream))
            self.position += self.global_batch
            assert batch is not None
            yield batch

    def forever(self) -> Iterator[ClipBatch]:
        """Training batches, epoch after epoch."""
        while True:
            yield from self

    def close(self) -> None:
        """Stop the workers."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()  # type: ignore[attr-defined]
        self._pending.clear()

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
            "samples": len(self.dataset),
            "fingerprint": self.dataset.fingerprint,
            # One rank reads them all: it costs two small reads of every listed file.
            "contents": self.dataset.table.contents if self.rank == 0 else None,
            "skips": self.skips.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the last batch of the saved loader, also with other rank counts.

        Raises DataError when seed or samples differ, since the order would be another one.
        """
        mine = self.state_dict()
        for name in ("version", "seed", "samples", "fingerprint"):
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

    def _training_requests(self) -> Iterator[Request]:
        epoch, position, total = self.epoch, self.position, len(self.dataset)
        while True:
            while position + self.global_batch <= total:
                order = self._epoch_order(epoch)
                mine = range(
                    position + self.rank * self.batch_size,
                    position + (self.rank + 1) * self.batch_size,
                )
                yield Request(epoch, [self._candidates(p, position, order) for p in mine])
                position += self.global_batch
            epoch, position = epoch + 1, 0

    def _candidates(self, position: int, start: int, order: torch.Tensor) -> list[int]:
        positions = [position]
        for candidate in stand_ins(position, start, self.global_batch, len(order)):
            if len(positions) == CANDIDATES:
                break
            positions.append(candidate)
        return order[positions].tolist()

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        if self._order is None or self._order[0] != epoch:
            keys = torch.tensor(self.dataset.keys)  # the index is mapped read-only
            self._order = epoch, epoch_order(keys, self.seed, epoch)
        return self._order[1]

    def _evaluation_part(self) -> tuple[int, int]:
        total = len(self.dataset)
        return total * self.rank // self.world_size, total * (self.rank + 1) // self.world_size

    def _evaluate(self) -> Iterator[ClipBatch]:
        first, last = self._evaluation_part()
        requests = (
            Request(0, [[index] for index in range(start, min(start + self.batch_size, last))])
            for start in range(first, last, self.batch_size)
        )
        self._pending.clear()
        for loaded in self._load(requests):
            batch = self._receive(loaded)
            if batch is not None:
                yield batch

    def _load(self, requests: Iterator[Request]) -> Iterator[Loaded]:
        if self.workers == 0:
            for request in requests:
                self._pending.append(request)
                yield self._assembler[request]
            return
        # forkserver: a fork of a process that has decoded or trained may hang (PyAV 1962).
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["svilm_fast.data.loader"])
        loader = DataLoader(
            self._assembler,
            batch_size=None,
            sampler=self._remembered(requests),  # type: ignore[arg-type]
            num_workers=self.workers,
            prefetch_factor=self.config.prefetch,
            timeout=self.config.timeout_s,
            multiprocessing_context=context,
            pin_memory=self.pin_memory,
        )
        batches: Any = None
        try:
            with main_module_hidden():
                batches = iter(loader)
            yield from batches
        except RuntimeError as error:  # a worker was killed, or reported nothing in time
            # One that hangs would be waited for once more, 10 s, before the error is seen.
            for worker in getattr(batches, "_workers", ()):
                worker.kill()
            if not self._pending:
                raise
            indices = [places[0] for places in self._pending[0].candidates[:4]]
            names = ", ".join(repr(self.dataset.ids[index]) for index in indices)
            raise WorkerError(
                f"no batch from the workers: {single_line(error)}. The batch begins with the "
                f"samples {names}: a file may hang the decoder; data.timeout_s is "
                f"{self.config.timeout_s:g}"
            ) from None

    def _remembered(self, requests: Iterator[Request]) -> Iterator[Request]:
        for request in requests:
            self._pending.append(request)
            yield request

    def _receive(self, loaded: Loaded) -> ClipBatch | None:
        request = self._pending.popleft()
        for skip in loaded.skips:
            self.skips.add(skip)
        self.skips.notes.update(loaded.notes)
        self.skips.seen = min(self.skips.seen + len(request.candidates), len(self.dataset))
        if loaded.failure is not None:
            error = WorkerError(loaded.failure[0])
            error.add_note(loaded.failure[1])
            raise error
        limits = self.config.skips
        self.skips.check_budget(limits.fraction, limits.always_allowed)
        return loaded.batch


def build_loader(
    config: DataConfig,
    dataset: ClipDataset,
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
