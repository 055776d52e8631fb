"""What a worker does: load the clips of a unit and replace those that fail."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from svilm_fast.core.messages import single_line
from svilm_fast.core.text import counted
from svilm_fast.data.batch import SampleBatch
from svilm_fast.data.errors import DataError, WorkerError
from svilm_fast.data.loadable import LoadableDataset
from svilm_fast.data.skips import Skip

NO_SAMPLE = -1.0


class Request(NamedTuple):
    """Clips to load: for each place the sample, then those that may replace it."""

    epoch: int
    candidates: list[list[int]]

    def units(self, size: int) -> list[Request]:
        """The request in parts of at most `size` clips."""
        starts = range(0, len(self.candidates), size)
        return [Request(self.epoch, self.candidates[start : start + size]) for start in starts]


class Loaded(NamedTuple):
    """The clips of a request that could be loaded.

    `wanted` clips were requested; `failure` is a one-line message and a traceback.
    """

    wanted: int
    batch: SampleBatch | None
    skips: list[Skip]
    notes: list[str]
    failure: tuple[str, str] | None

    def private(self) -> Loaded:
        """The same with its clips in memory of this process: shared memory is small."""
        return self if self.batch is None else self._replace(batch=self.batch.clone())

    @classmethod
    def joined(cls, units: Sequence[Loaded], *, pin_memory: bool) -> Loaded:
        """The units of a batch as one; the first failure counts."""
        failure = next((unit.failure for unit in units if unit.failure is not None), None)
        parts = [unit.batch for unit in units if unit.batch is not None]
        return cls(
            sum(unit.wanted for unit in units),
            type(parts[0]).joined(parts, pin_memory=pin_memory) if parts and not failure else None,
            [skip for unit in units for skip in unit.skips],
            [note for unit in units for note in unit.notes],
            failure,
        )


class Assembler(Dataset):
    """Turns requests into clips, in this process or in a worker.

    A training clip that fails with all its stand-ins is an error. leave_out: it is left out, as in
    evaluation.

    `stamps` float64 [workers, 2] is shared with the parent process: the sample that each worker
    loads (NO_SAMPLE between two), and since when, on the monotonic clock.
    """

    def __init__(
        self, dataset: LoadableDataset, seed: int, workers: int = 0, *, leave_out: bool = False
    ) -> None:
        self.dataset, self.seed = dataset, seed
        self.leave_out = leave_out or not dataset.train
        self.stamps = torch.full((workers, 2), NO_SAMPLE, dtype=torch.float64)
        if workers:
            self.stamps.share_memory_()

    def __getitem__(self, request: Request) -> Loaded:
        skips: list[Skip] = []
        dataset, epoch = self.dataset, request.epoch
        wanted = [places[0] for places in request.candidates]
        draws: Sequence[Any] = [None] * len(wanted)
        if dataset.train:
            draws = dataset.draws(wanted, self.seed, epoch)
        frames = [_buffer((len(wanted), *shape)) for shape in dataset.frame_shapes]
        clips: list[Any] = []
        try:
            for places, draw in zip(request.candidates, draws):
                into = [each[len(clips)] for each in frames]
                clip = self._first_that_loads(places, draw, epoch, skips, into)
                if clip is not None:
                    clips.append(clip)
            filled = [each[: len(clips)] for each in frames]
            batch = dataset.collate(clips, filled) if clips else None
        except DataError as error:
            failure = str(error), traceback.format_exc()
            return Loaded(len(wanted), None, skips, [], failure)
        finally:
            self._stamp(NO_SAMPLE)
        notes = [note for clip in clips for note in clip.notes]
        return Loaded(len(wanted), batch, skips, notes, None)

    def _stamp(self, sample: float) -> None:
        worker = get_worker_info()
        if worker is not None:
            self.stamps[worker.id, 1] = time.monotonic()
            self.stamps[worker.id, 0] = sample

    def _first_that_loads(
        self, places: list[int], draw: Any, epoch: int, skips: list[Skip], out: list[Tensor]
    ) -> Any | None:
        dataset = self.dataset
        for attempt, index in enumerate(places):
            if attempt:
                draw = dataset.draws([index], self.seed, epoch)[0]
            self._stamp(index)
            try:
                return dataset.clip(index, draw, out)
            except DataError as error:
                skips.append(Skip.of(dataset.ids[index], error))
            except Exception as error:
                name = dataset.ids[index]
                raise WorkerError(
                    f"sample {name!r}: unexpected {type(error).__name__}: {single_line(error)}"
                ) from error
        if self.leave_out:
            return None
        last = skips[-1]
        raise WorkerError(
            f"{counted(len(places), 'sample')} in a row cannot be loaded; the last was "
            f"{last.sample!r}: {last.message}"
        )


def _buffer(shape: tuple[int, ...]) -> Tensor:
    """Memory for frames, uint8; in a worker the parent's too."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As torch's default collation does; `share_memory_` would copy what is not written yet.
    storage = torch.UntypedStorage._new_shared(torch.Size(shape).numel(), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
