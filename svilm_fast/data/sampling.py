"""Which frames of a video are looked at (papers: a random frame per segment, or its middle)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from svilm_fast.core.text import counted
from svilm_fast.data.errors import ShortClipError
from svilm_fast.data.timeline import Timeline


@dataclass(frozen=True)
class FrameChoice:
    """The choice of a clip's frames for `decode_clip`; picklable."""

    frames: int
    uniform: np.ndarray | None  # as in `choose_frames`
    short_clip: str = "repeat"
    by_time: bool = True

    def __call__(self, timeline: Timeline) -> np.ndarray:
        return choose_frames(
            timeline.total,
            self.frames,
            self.uniform,
            short_clip=self.short_clip,
            edges=timeline.edges if self.by_time else None,
        )


@dataclass(frozen=True)
class UniformClips:
    """The choice of the frames of all clips for `decode_clip`: ascending, [clips * F]; picklable.

    choice: of one clip.
    """

    choice: FrameChoice
    clips: int

    def __call__(self, timeline: Timeline) -> np.ndarray:
        one = self.choice
        if one.short_clip == "skip" and timeline.total < one.frames:
            one(timeline)
        frames = self.clips * one.frames
        return FrameChoice(frames, None, "repeat", one.by_time)(timeline)


@dataclass(frozen=True)
class Together:
    """The frames of several choices, each once and ascending, for `decode_clip`; picklable."""

    choices: tuple[Callable[[Timeline], np.ndarray], ...]

    def __call__(self, timeline: Timeline) -> np.ndarray:
        return np.unique(np.concatenate([choose(timeline) for choose in self.choices]))


def choose_frames(
    total: int,
    frames: int,
    uniform: np.ndarray | None,
    *,
    short_clip: str = "repeat",
    edges: np.ndarray | None = None,
) -> np.ndarray:
    """Cut a video of `total` frames in `frames` equal segments and take one frame of each.

    `uniform` float [frames] in [0, 1) draws the frame inside each segment (training); None takes
    the middle (evaluation). A video with fewer frames repeats some, or raises ShortClipError with
    `short_clip="skip"`. With `edges` float [total + 1], the times at which frames begin and the
    last one ends, the segments are equal parts of the time, and a frame that is shown through
    several segments is repeated. Returns int64 [frames], ascending.
    """
    if total < frames and short_clip == "skip":
        raise ShortClipError(
            f"the video has {counted(total, 'frame')}, {frames} are needed (data.short_clip=repeat "
            "keeps such clips)"
        )
    offset = 0.5 * np.ones(frames) if uniform is None else np.asarray(uniform, dtype=np.float64)
    if edges is not None:
        bounds = np.linspace(edges[0], edges[-1], frames + 1)
        times = bounds[:-1] + offset * np.diff(bounds)
        index = np.searchsorted(edges[:-1], times, side="right") - 1
        return np.clip(index, 0, total - 1).astype(np.int64)
    bounds = np.arange(frames + 1) * (total / frames)
    if total >= frames:
        # whole frames only: neighbours never share a frame
        bounds = np.floor(bounds)
    index = np.floor(bounds[:-1] + offset * np.diff(bounds)).astype(np.int64)
    return np.clip(index, 0, total - 1)


@dataclass(frozen=True)
class AtRate:
    """The choice of `rate` frames per second for `decode_clip`: those shown at k / rate; picklable.

    rate: None takes every frame of a constant frame rate. Raises ShortClipError for a video whose
    frames have no times.
    """

    rate: float | None

    def __call__(self, timeline: Timeline) -> np.ndarray:
        seconds = duration_of(timeline)
        if seconds <= 0:
            raise ShortClipError("the times of the video's frames are unknown")
        if self.rate is None:
            if timeline.edges is not None:
                raise ShortClipError("the video's frame rate varies: give frames per second")
            return np.arange(timeline.total, dtype=np.int64)
        times = np.arange(max(1, math.floor(seconds * self.rate + 1e-6))) / self.rate
        if timeline.edges is None:
            index = np.floor(times / timeline.period + 1e-6).astype(np.int64)
        else:
            starts = timeline.edges[:-1] - timeline.edges[0]
            index = np.searchsorted(starts, times + 1e-6, side="right") - 1
        return np.clip(index, 0, timeline.total - 1).astype(np.int64)


def duration_of(timeline: Timeline) -> float:
    """Seconds from the first frame to the end of the last; 0 where unknown."""
    if timeline.edges is not None:
        return float(timeline.edges[-1] - timeline.edges[0])
    return timeline.total * timeline.period


@dataclass(frozen=True)
class DrawnFrames:
    """A choice for `decode_clip`: frames drawn at random, in any groups; picklable."""

    frames: int
    seed: int

    def __call__(self, timeline: Timeline) -> np.ndarray:
        # Not numpy.random: a decoding process cannot import it, because it may open no file.
        places = Random(self.seed).choices(range(timeline.total), k=self.frames)
        return np.array(sorted(places), dtype=np.int64)


@dataclass(frozen=True)
class FirstAndLast:
    """A choice for `decode_clip`: the first frame and the last one."""

    def __call__(self, timeline: Timeline) -> np.ndarray:
        return np.array([0, timeline.total - 1])


@dataclass(frozen=True)
class WithoutGroups:
    """The same choice, for which everything is decoded."""

    choice: Callable[[Timeline], np.ndarray]
    decodes_everything = True

    def __call__(self, timeline: Timeline) -> np.ndarray:
        return self.choice(timeline)
