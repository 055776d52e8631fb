"""The measurement: all contestants in turn on the same clips, in a process like a worker's."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.intervals import bootstrap_interval
from svilm_fast.bench.loading.loaders import PLAIN, PRODUCT, dataset_of, loaders
from svilm_fast.bench.loading.sources import VideoSource
from svilm_fast.bench.loading.stages import stage_seconds
from svilm_fast.core.errors import UserError
from svilm_fast.core.messages import single_line
from svilm_fast.data.main_module import main_module_hidden

# Mean difference of 8-bit values, of scaled frames from other decoders and colour conversions.
_OTHER_PIXELS = 4.0
_CONFIDENCE = 0.95


@dataclass
class Measurement:
    """CPU seconds per clip on one source, a value for every round."""

    source: str
    clips: int
    seconds: float | None
    frames: int
    size: int
    cpu: dict[str, list[float]] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)

    def clips_per_core(self, name: str) -> float:
        """Clips per second and core, of the median round."""
        return 1 / float(np.median(self.cpu[name]))

    def ratio(self, name: str) -> tuple[float, float, float]:
        """How many times faster than `name` this package is: median of the rounds, interval."""
        ratios = np.array(self.cpu[name]) / np.array(self.cpu[PRODUCT])
        low, high = bootstrap_interval([ratios], np.median, _CONFIDENCE)
        return float(np.median(ratios)), low, high

    def as_json(self) -> dict[str, Any]:
        """All values, and the figures made of them."""
        others = [name for name in self.cpu if name != PRODUCT]
        return {
            **asdict(self),
            "clips_per_second_and_core": {name: self.clips_per_core(name) for name in self.cpu},
            "times_faster_than": {name: self.ratio(name) for name in others},
        }


def measure(
    source: VideoSource, frames: int, size: int, rounds: int, advance: Callable[[], None]
) -> Measurement:
    """Measure one source; `advance` is called after every round. Raises UserError."""
    # A daemon decodes in its own process, as a loader's worker does.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_measure_and_send, args=(theirs, source, frames, size, rounds), daemon=True
    )
    with main_module_hidden():
        process.start()
    theirs.close()
    try:
        while True:
            answer = ours.recv()
            if isinstance(answer, Measurement):
                return answer
            if isinstance(answer, str):
                raise UserError(f"loading {source.name}: {answer}")
            advance()
    except EOFError:
        raise UserError(f"loading {source.name}: the measuring process died") from None
    finally:
        process.kill()
        process.join()


def _measure_and_send(
    connection: Connection, source: VideoSource, frames: int, size: int, rounds: int
) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        dataset = dataset_of(source, frames, size)
        contestants = loaders(source, dataset)
        _require_equal({name: load() for name, load in contestants.items()})
        result = Measurement(source.name, source.clips, source.seconds, frames, size)
        result.cpu = {name: [] for name in contestants}
        names = list(contestants)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                start = time.process_time()
                contestants[name]()
                result.cpu[name].append((time.process_time() - start) / source.clips)
            connection.send(turn)
        result.stages = stage_seconds(dataset, source.clips)
        connection.send(result)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {single_line(error)}")


def _require_equal(frames: dict[str, Any]) -> None:
    """Contestants load the same clips: PyAV's pixels are equal, other libraries' similar."""
    ours = frames[PRODUCT].numpy()
    for name, theirs in frames.items():
        if theirs.shape != ours.shape:
            raise WrongResult(f"{name} gives other shapes than {PRODUCT}", 1.0)
        difference = np.abs(theirs.numpy().astype(np.int16) - ours)
        wrong = float(difference.max()) if name == PLAIN else float(difference.mean())
        if wrong > (0 if name == PLAIN else _OTHER_PIXELS):
            raise WrongResult(f"{name} loads other frames than {PRODUCT}", wrong)
