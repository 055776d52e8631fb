"""Batches made by worker processes in units of a few clips, joined in a thread of this process."""

from __future__ import annotations

import contextlib
import contextvars
import math
import multiprocessing
import os
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from svilm_fast.core.messages import single_line
from svilm_fast.core.text import counted
from svilm_fast.data.assemble import NO_SAMPLE, Assembler, Loaded, Request
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError, WorkerError
from svilm_fast.data.loadable import LoadableDataset
from svilm_fast.data.main_module import main_module_hidden

SHARED_MEMORY = "/dev/shm"
UNITS_AHEAD = 2  # per worker: one in work, one finished
_START_S = 120.0  # a worker's start on a busy machine does not count as a clip's time
_CLOSE_S = 2.0  # a worker may finish its unit for this long before it is killed
_checked = contextvars.ContextVar("shared_memory_checked", default=False)


def shared_bytes(config: DataConfig, dataset: LoadableDataset) -> int:
    """Shared memory that the workers of one loader fill at most, bytes."""
    return loader_memory(config, sum(map(math.prod, dataset.frame_shapes)), 1).shared


@dataclass(frozen=True)
class LoaderMemory:
    """Bytes of frames that the loader of one rank holds at most.

    shared: in /dev/shm, finished and unfinished units of the workers. private: whole batches that
    wait in the rank's own memory, one that is being joined, its parts, and the one in use.
    """

    shared: int
    private: int


def loader_memory(config: DataConfig, clip_bytes: int, batch_size: int) -> LoaderMemory:
    """What a loader holds of batches of `batch_size` clips of `clip_bytes` bytes of frames."""
    workers = 0 if config.cache == "memory" else config.workers
    if not workers:
        return LoaderMemory(0, batch_size * clip_bytes)
    shared = workers * UNITS_AHEAD * config.unit * clip_bytes
    # Joining copies: the parts of a batch and the batch exist at the same time. The iterator holds
    # the batch that it gave out last.
    return LoaderMemory(shared, (config.prefetch + 3) * batch_size * clip_bytes)


def check_shared_memory(
    config: DataConfig, dataset: LoadableDataset, evaluated: Iterable[LoadableDataset] = ()
) -> None:
    """Raise DataError when the loaders of this node need more shared memory than is free.

    Args:
        dataset: of the loader that is about to open.
        evaluated: data sets of further loaders, which open one at a time beside the first.
    """
    if _checked.get():
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    beside = max((shared_bytes(config, other) for other in evaluated), default=0)
    needed = ranks * (shared_bytes(config, dataset) + beside)
    free = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else needed
    if needed > free:
        raise DataError(
            f"{counted(config.workers, 'worker')} for each of {counted(ranks, 'rank')} of this "
            f"node fill up to {needed / 2**20:,.0f} MiB of shared memory, and {SHARED_MEMORY} has "
            f"{free / 2**20:,.0f} MiB free: lower data.workers or data.unit (now {config.unit} "
            f"clips), or enlarge {SHARED_MEMORY} (for example docker run --shm-size)"
        )


@contextlib.contextmanager
def shared_memory_checked(
    config: DataConfig, dataset: LoadableDataset, evaluated: Iterable[LoadableDataset]
) -> Iterator[None]:
    """Check training and its evaluations together; loaders that open inside are not checked.

    Their own check would count what other ranks already fill, and come hours after the start.
    """
    check_shared_memory(config, dataset, evaluated)
    token = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(token)


class WorkerPipeline:
    """Iterates over the batches of `requests`, in their order, made by `config.workers` processes.

    A worker loads `config.unit` clips at a time and stacks them directly into shared memory. A
    thread joins the units of a batch, in page-locked memory where `pin_memory`, and keeps
    `config.prefetch` batches ready. A second thread watches the workers: one that takes longer than
    `config.timeout_s` for a clip is killed, which ends the iteration with an error that names the
    clip.

    Raises:
        WorkerError: from `next`: a worker died, hung or could not be started.
    """

    def __init__(
        self, assembler: Assembler, requests: Iterator[Request], config: DataConfig, *, pin: bool
    ) -> None:
        self._assembler, self._requests, self._config, self._pin = assembler, requests, config, pin
        assembler.stamps[:, 0] = NO_SAMPLE
        assembler.stamps[:, 1] = time.monotonic() + _START_S
        self._batches: queue.Queue[Loaded | BaseException | None] = queue.Queue(config.prefetch)
        self._sizes: deque[int] = deque()  # units of each batch that is not joined yet
        self._units: deque[Request] = deque()  # requested and not received
        self._received = 0
        self._waiting_since: float | None = None
        self._workers: list[Any] = []
        self._killed = ""
        self._request_error: Exception | None = None
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="svilm-watch")
        self._joiner = threading.Thread(target=self._join, daemon=True, name="svilm-join")
        self._watcher.start()
        self._joiner.start()

    def __iter__(self) -> WorkerPipeline:
        return self

    def __next__(self) -> Loaded:
        item = self._batches.get()
        if isinstance(item, Loaded):
            return item
        self.close()
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """Stop the workers and the threads; harmless when repeated."""
        self._stop.set()
        self._joiner.join(_CLOSE_S)
        if self._joiner.is_alive():
            self._kill_workers()
            self._joiner.join(_START_S)
        self._watcher.join()
        with contextlib.suppress(queue.Full):
            self._batches.put_nowait(None)  # for a `next` after the end

    def _join(self) -> None:
        """Thread: receive units and hand on whole batches."""
        try:
            self._receive_all()
            self._hand_on(None)
        except BaseException as error:
            self._kill_workers()  # one that hangs would be waited for
            self._hand_on(error)

    def _receive_all(self) -> None:
        # forkserver: a fork of a process that has decoded or trained may hang (PyAV 1962).
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["svilm_fast.data.loader"])
        loader = DataLoader(
            self._assembler,
            batch_size=None,
            sampler=self._planned(),  # type: ignore[arg-type]
            num_workers=self._config.workers,
            prefetch_factor=UNITS_AHEAD,
            multiprocessing_context=context,
        )
        with main_module_hidden():
            units = iter(loader)
        self._workers = list(units._workers)  # type: ignore[attr-defined]
        parts: list[Loaded] = []
        while not self._stop.is_set():
            self._waiting_since = time.monotonic()
            try:
                unit = next(units, None)
            except (RuntimeError, OSError, EOFError) as error:  # torch's loader: a worker is gone
                if self._request_error is not None:
                    raise self._request_error from None
                raise self._explained(error) from error
            self._waiting_since = None
            if unit is None:
                return
            self._units.popleft()
            self._received += 1
            parts.append(unit.private())
            del unit
            if len(parts) == self._sizes[0]:
                self._sizes.popleft()
                self._hand_on(Loaded.joined(parts, pin_memory=self._pin))
                parts = []

    def _planned(self) -> Iterator[Request]:
        for request in self._remembering_errors():
            units = request.units(self._config.unit)
            self._sizes.append(len(units))
            for unit in units:
                self._units.append(unit)
                yield unit

    def _remembering_errors(self) -> Iterator[Request]:
        """The requests; what they raise is no fault of a worker."""
        try:
            yield from self._requests
        except Exception as error:
            self._request_error = error
            raise

    def _hand_on(self, item: Loaded | BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._batches.put(item, timeout=0.2)
                return

    def _watch(self) -> None:
        """Thread: kill a worker that takes too long for a clip."""
        limit = self._config.timeout_s
        while self._joiner.ident is None or self._joiner.is_alive():
            if self._stop.wait(min(1.0, limit / 4)):
                return
            now, waiting = time.monotonic(), self._waiting_since
            # torch's loader gives units to the workers in turn.
            expected = self._received % max(1, len(self._workers))
            for number, worker in enumerate(self._workers):
                sample, since = self._assembler.stamps[number].tolist()
                late = now - since > limit
                # A process may also be stopped between two clips.
                idle = sample < 0 and (
                    waiting is None or now - waiting <= limit or number != expected
                )
                if late and not idle and worker.is_alive():
                    self._killed = f"it took longer than data.timeout_s={limit:g} s for a clip"
                    worker.kill()

    def _kill_workers(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _explained(self, error: Exception) -> WorkerError:
        """Name the sample that the dead worker was loading, or else those of the missing unit."""
        dataset = self._assembler.dataset
        if not self._workers or not self._units:
            return WorkerError(f"the workers of the loader cannot start: {single_line(error)}")
        # The first sign of a worker's end may be a broken connection.
        self._workers[self._received % len(self._workers)].join(_CLOSE_S)
        dead = [number for number, worker in enumerate(self._workers) if not worker.is_alive()]
        how = self._killed or single_line(error)
        if dead and not self._killed:
            code = self._workers[dead[0]].exitcode
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        loading = [int(self._assembler.stamps[number, 0]) for number in dead]
        current = next((sample for sample in loading if sample >= 0), None)
        if current is not None:
            place = f"it was loading the sample {dataset.ids[current]!r}"
        else:
            names = [dataset.ids[places[0]] for places in self._units[0].candidates[:4]]
            place = f"the missing clips begin with the samples {', '.join(map(repr, names))}"
        return WorkerError(f"a worker of the loader ended ({how}); {place}")
