"""Shared memory, barriers, asynchronous operations and schedules of `gluon_interpreter`."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# How often the scheduler chooses a partition, the copies, or the products of a partition.
_WEIGHTS = (0.02, 0.3, 1.0, 1.0, 5.0)


class GluonFault(AssertionError):
    """A fault of a kernel under some schedule.

    `kind` is as in the docstring of `gluon_interpreter`. `name` tells races apart: `missing wait`
    (a read of what may not be there), `overwritten buffer`, `missing fence`.
    """

    def __init__(self, kind: str, message: str, name: str | None = None) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.name = kind, name or kind


class Stopped(BaseException):
    """Ends the thread of a partition after a fault elsewhere."""


@dataclass
class Event:
    """A read or write of a buffer; `bit` is its place in the sets of known events.

    `fenced` is the place of the fence after a plain event, which an asynchronous access needs.
    """

    bit: int
    what: str
    fenced: int = 0


@dataclass
class Slot:
    """A buffer of shared memory that is copied, read and freed as a whole."""

    name: str
    data: np.ndarray
    write: Event | None = None
    reads: list[Event] = field(default_factory=list)


@dataclass
class Product:
    """An asynchronous product of a partition."""

    event: Event
    left: View
    right: View
    start: Any
    value: np.ndarray | None = None
    retired: bool = False

    def refuse(self, *_: Any) -> Any:
        what = self.event.what
        raise GluonFault("pending", f"the result of {what} is used before a wait for it")

    __add__ = __radd__ = __sub__ = __mul__ = __rmul__ = __getitem__ = __array__ = refuse

    shape = property(refuse)

    def compute(self) -> None:
        value = self.left.data @ self.right.data
        if self.start is not None:
            value = value + (self.start.value if isinstance(self.start, Product) else self.start)
        self.value = value


@dataclass
class Copy:
    """A TMA copy under way."""

    slot: Slot
    block: np.ndarray
    size: int
    barrier: Barrier
    phase: int
    known: int


@dataclass
class Store:
    """A TMA store under way: it reads its buffer first and writes global memory later."""

    event: Event
    slot: Slot
    write: Callable[[np.ndarray], None]
    read: np.ndarray | None = None


class View:
    """A buffer as the kernel sees it, possibly some of its rows, possibly transposed.

    Races are those of the whole buffer.
    """

    def __init__(
        self,
        machine: Machine,
        slot: Slot,
        dtype: Any,
        *,
        flipped: bool = False,
        rows: slice = slice(None),
    ) -> None:
        self.machine, self.slot, self.dtype = machine, slot, dtype
        self.flipped, self.rows = flipped, rows

    @property
    def data(self) -> np.ndarray:
        data = self.slot.data[self.rows]
        return data.T if self.flipped else data

    def permute(self, order: tuple[int, int]) -> View:
        assert tuple(order) == (1, 0)
        return View(self.machine, self.slot, self.dtype, flipped=not self.flipped, rows=self.rows)

    def slice(self, start: int, length: int, dim: int = 0) -> View:
        """Rows [start, start + length) of a whole buffer."""
        assert dim == 0
        assert self.rows == slice(None)
        assert not self.flipped
        if not 0 <= start < start + length <= len(self.slot.data):
            raise GluonFault("memory", f"rows {start} + {length} of {self.slot.name}")
        rows = slice(start, start + length)
        return View(self.machine, self.slot, self.dtype, rows=rows)

    def reshape(self, shape: list[int]) -> View:
        """Without dimensions of size 1, which a slot does not have."""
        assert list(shape) == list(self.slot.data.shape)
        assert self.rows == slice(None)
        return self

    def load(self, _layout: Any) -> np.ndarray:
        event = self.machine.event("a load", plain=True)
        self.machine.read(self.slot, event)
        self.machine.current.known |= event.bit
        return self.slot.data.copy()

    def store(self, value: np.ndarray) -> None:
        assert self.rows == slice(None)
        event = self.machine.event("a store", plain=True)
        self.machine.write(self.slot, event)
        self.machine.current.known |= event.bit
        self.slot.data[...] = value


class Barrier:
    """An mbarrier: the phase ends when no arrival and no byte is outstanding."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.pending = self.bytes = self.phase = 0
        self.gathered = self.released = 0

    def describe(self) -> str:
        return (
            f"{self.name} (phase {self.phase}, {self.pending} of {self.count} arrivals and "
            f"{self.bytes} bytes outstanding)"
        )

    def add(self, arrivals: int, size: int, known: int) -> None:
        if not self.count:
            raise GluonFault("barrier", f"{self.name} is used before it is initialised")
        if arrivals > self.pending:
            raise GluonFault("barrier", f"more arrivals than {self.describe()} expects")
        self.pending -= arrivals
        self.bytes += size
        self.gathered |= known
        if self.pending == 0 and self.bytes < 0:
            raise GluonFault("barrier", f"more bytes copied than {self.describe()} expects")
        if self.pending == self.bytes == 0:
            self.phase += 1
            self.pending = self.count
            self.released |= self.gathered


class Row:
    """What `allocate_shared_memory` returns for several buffers or barriers."""

    def __init__(self, name: str, parts: list[Any]) -> None:
        self.name, self.parts = name, parts

    def single(self, shape: list[int], dimensions: int) -> Any:
        """The only part where `shape` has no dimension for a row of them, else the row."""
        return self.parts[0] if len(shape) == dimensions else self

    def index(self, at: int) -> Any:
        if not 0 <= at < len(self.parts):
            raise GluonFault("memory", f"{self.name}[{at}] of {len(self.parts)} buffers")
        return self.parts[at]


class Partition(threading.Thread):
    """A partition's thread; it runs while the scheduler has handed it the turn."""

    def __init__(self, machine: Machine, number: int, call: tuple[Any, Any]) -> None:
        super().__init__(daemon=True)
        self.machine, self.call = machine, call
        self.title = f"{call[0].__name__} ({number})"
        self.turn = threading.Semaphore(0)
        self.ready: Callable[[], bool] = lambda: True
        self.waits_for = ""
        self.known = machine.current.known
        # Issued and not yet waited for, and those of the wait that is under way.
        self.products: list[Product] = []
        self.pending: list[Product] = []
        self.stores: list[Store] = []
        self.error: BaseException | None = None
        self.done = False

    def run(self) -> None:
        self.turn.acquire()
        try:
            if not self.machine.stopped:
                self.call[0](*self.call[1])
                for issued in (*self.products, *self.stores):
                    what = issued.event.what
                    raise GluonFault("pending", f"{self.title} ends before a wait for {what}")
        except Stopped:
            pass
        except BaseException as error:
            self.error = error
        self.done = True
        self.machine.back.release()

    def pause(self, ready: Callable[[], bool] = lambda: True, waits_for: str = "") -> None:
        self.ready, self.waits_for = ready, waits_for
        self.machine.back.release()
        self.turn.acquire()
        if self.machine.stopped:
            raise Stopped


class Root:
    """The program outside `warp_specialize`: alone, so it never pauses."""

    title = "the program"

    def __init__(self) -> None:
        self.known = 0
        self.products: list[Product] = []
        self.stores: list[Store] = []

    def pause(self, ready: Callable[[], bool] = lambda: True, waits_for: str = "") -> None:
        if not ready():
            raise GluonFault("deadlock", f"{self.title} waits for {waits_for}")


class Machine:
    """Shared memory, barriers, asynchronous operations and the schedule of one program."""

    def __init__(self, seed: int, program: int) -> None:
        self.random = random.Random(f"{seed} {program}")
        self.current: Any = Root()
        self.copies: list[Copy] = []
        self.stores: list[Store] = []
        self.log: list[tuple[str, str]] = []
        self.back, self.stopped = threading.Semaphore(0), False
        self._bits = itertools.count()
        self._plain = 0
        self._weights: dict[Any, float] = {}

    def event(self, what: str, *, plain: bool = False) -> Event:
        bit = 1 << next(self._bits)
        if plain:
            self._plain |= bit
        fenced = 1 << next(self._bits) if plain else 0
        return Event(bit, f"{what} of {self.current.title}", fenced)

    def fence(self) -> None:
        """Order the plain accesses that the partition knows before later asynchronous ones."""
        self.current.known |= (self.current.known & self._plain) << 1

    def read(self, slot: Slot, event: Event) -> None:
        before = slot.write
        if before is None:
            what = f"{event.what} reads {slot.name}, which nobody has written"
            raise GluonFault("race", what, "missing wait")
        if not self.current.known & before.bit:
            what = f"{event.what} reads {slot.name} without a wait for {before.what}"
            raise GluonFault("race", what, "missing wait")
        self._require_fence(slot, event, before)
        slot.reads.append(event)

    def write(self, slot: Slot, event: Event) -> None:
        for before in [*slot.reads, *([slot.write] if slot.write else [])]:
            if not self.current.known & before.bit:
                what = f"{event.what} overwrites {slot.name} without a wait for {before.what}"
                raise GluonFault("race", what, "overwritten buffer")
            self._require_fence(slot, event, before)
        slot.write, slot.reads = event, []

    def _require_fence(self, slot: Slot, event: Event, before: Event) -> None:
        """Raise where an asynchronous access follows a plain one without a fence between them."""
        if before.fenced and not event.fenced and not self.current.known & before.fenced:
            what = f"{event.what} uses {slot.name} without a fence after {before.what}"
            raise GluonFault("race", what, "missing fence")

    def weight(self, of: Any) -> float:
        return self._weights.setdefault(of, self.random.choice(_WEIGHTS))

    def run_partitions(self, calls: list[tuple[Any, Any]]) -> None:
        root = self.current
        threads = [Partition(self, number, call) for number, call in enumerate(calls)]
        for thread in threads:
            thread.start()
        try:
            while not all(thread.done for thread in threads):
                self._step(threads)
            if self.copies:
                raise GluonFault("pending", f"ended during a copy to {self.copies[0].slot.name}")
            while self.stores:
                self._advance(self.random.choice(self.stores))
        finally:
            self.stopped = True
            for thread in threads:
                thread.turn.release()
                thread.join()
            self.current = root

    def _step(self, threads: list[Partition]) -> None:
        steps: list[tuple[float, Callable[[], None]]] = [
            (self.weight(thread.title), lambda thread=thread: self._resume(thread))
            for thread in threads
            if not thread.done and thread.ready()
        ]
        for copy in self.copies:
            steps.append((self.weight("copies"), lambda copy=copy: self._complete(copy)))
        for store in self.stores:
            steps.append((self.weight("stores"), lambda store=store: self._advance(store)))
        for thread in threads:
            issued = thread.pending + thread.products
            waiting = [product for product in issued if product.value is None]
            if waiting:
                steps.append((self.weight(thread.title + " products"), waiting[0].compute))
        if not steps:
            lines = [f"{t.title} waits for {t.waits_for}" for t in threads if not t.done]
            raise GluonFault("deadlock", "; ".join(lines))
        weights, actions = zip(*steps)
        self.random.choices(actions, weights)[0]()

    def _resume(self, thread: Partition) -> None:
        self.current = thread
        thread.turn.release()
        self.back.acquire()
        if thread.error is not None:
            raise thread.error

    def _complete(self, copy: Copy) -> None:
        self.copies.remove(copy)
        barrier = copy.barrier
        if barrier.phase != copy.phase:
            raise GluonFault(
                "barrier", f"{barrier.describe()}: a phase ended before its copy to "
                f"{copy.slot.name}"
            )  # fmt: skip
        copy.slot.data[...] = copy.block
        barrier.add(0, -copy.size, copy.known)

    def _advance(self, store: Store) -> None:
        if store.read is None:
            store.read = store.slot.data.copy()
            return
        self.stores.remove(store)
        store.write(store.read)
