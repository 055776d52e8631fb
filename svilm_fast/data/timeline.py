"""When each frame of a video is shown, read from the packets before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

# The rate counts as constant while no frame is further from its place at the mean rate, in mean
# intervals: equal parts of the frames are then equal parts of the time.
_JITTER = 1.0
_UNSTAMPED_FRAMES = 2
_UNSTAMPED_SHARE = 0.02


@dataclass(frozen=True)
class Timeline:
    """The frames that a player shows.

    `edges` float64 [total + 1] holds the start of every frame and the end of the last one in
    seconds; None where the frame rate is constant, within one frame, or timestamps are missing.
    `period` is the time between two frames of a constant rate in seconds, 0 where it is unknown.
    """

    total: int
    edges: np.ndarray | None = None
    period: float = 0.0


class ShownFrames:
    """The frames of a video stream as its packets announce them.

    Frames that an edit list cuts away and VP8's invisible reference frames are left out.

    AVI and ASF have no presentation times: FFmpeg gives the decoding times instead, and gives them
    to the wrong frames where the decoder reorders (`reorders`, a codec with B-frames). The frames
    of a stream whose times ascend in decoding order although the decoder may reorder are counted;
    where nothing is reordered after all, counting gives the same places.
    """

    def __init__(
        self, packets: Iterable[Any], codec: str, time_base: Fraction, *, reorders: bool = False
    ) -> None:
        self.time_base = time_base
        shown = [packet for packet in packets if packet.size and not packet.is_discard]
        if codec == "vp8":
            shown = [packet for packet in shown if _is_shown_vp8(packet)]
        self.total = len(shown)
        self.pts: np.ndarray | None = None  # int64 [total], ascending, in ticks of time_base
        self._counted = False  # times are those of no particular frame
        self._last_duration = 0
        stamps = [packet.pts for packet in shown]
        stamped = [pts for pts in stamps if pts is not None]
        order = [packet.dts for packet in shown if packet.dts is not None]
        # A few packets without a time belong to frames that a cut made undecodable. After a jump
        # backwards (two recordings in one file) times no longer name a frame.
        few = max(_UNSTAMPED_FRAMES, _UNSTAMPED_SHARE * self.total)
        if stamped and self.total - len(stamped) <= few and order == sorted(order):
            given = np.array(stamped, dtype=np.int64)
            ascending = np.sort(given)  # faster than np.unique, which hashes
            self.pts = ascending[np.append(True, np.diff(ascending) > 0)]
            self._counted = reorders and bool((np.diff(given) > 0).all())
            self.total = len(self.pts)
            self._last_duration = shown[stamps.index(max(stamped))].duration or 0

    @property
    def timed(self) -> bool:
        """Whether the time of a decoded frame says which one it is."""
        return self.pts is not None and not self._counted

    def start_at(self, pts: int | None) -> None:
        """Leave out what comes before the first frame that the decoder gives.

        A recording may begin between key frames; what lies before the first one is never shown.
        """
        if self.pts is not None and pts is not None:
            later = self.pts[self.pts >= pts]
            if len(later):
                self.pts, self.total = later, len(later)

    def place(self, pts: int | None, count: int) -> int:
        """The place of the frame that was decoded as number `count`, or 0 where it has no time."""
        if self.pts is None or self._counted:
            return count
        if pts is None:
            return 0
        return max(0, int(np.searchsorted(self.pts, pts, side="right")) - 1)

    def timeline(self) -> Timeline:
        """Total and, for a variable frame rate, times."""
        if self.pts is None or self.total < 2:
            return Timeline(self.total, period=self._last_duration * float(self.time_base))
        line = np.linspace(self.pts[0], self.pts[-1], self.total)
        mean = (self.pts[-1] - self.pts[0]) / (self.total - 1)
        if np.abs(self.pts - line).max() <= _JITTER * mean:
            return Timeline(self.total, period=float(mean * self.time_base))
        last = self._last_duration or int(np.median(np.diff(self.pts)))
        ticks = np.append(self.pts, self.pts[-1] + last)
        return Timeline(self.total, ticks * float(self.time_base))

    def interval(self) -> tuple[float, float] | None:
        """The median and the longest time between two frames, seconds; None where unknown."""
        if self.pts is None or self.total < 2:
            return None
        steps = np.diff(self.pts) * float(self.time_base)
        return float(np.median(steps)), float(steps.max())


def _is_shown_vp8(packet: Any) -> bool:
    # RFC 6386, 9.1: bit 4 of a frame is show_frame.
    return bool(memoryview(packet)[0] & 0x10)
