"""When each frame of a video is shown, read from the packets before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

# Intervals between frames that differ by no more are one rate in rounded timestamps.
_JITTER_TICKS = 2
_JITTER_SHARE = 0.02


@dataclass(frozen=True)
class Timeline:
    """The frames that a player shows.

    `edges` float64 [total + 1] holds the start of every frame and the end of the last one in
    seconds; None where the frame rate is constant or the container has no timestamps. `period` is
    the time between two frames of a constant rate in seconds, 0 where it is unknown.
    """

    total: int
    edges: np.ndarray | None = None
    period: float = 0.0


class ShownFrames:
    """The frames of a video stream as its packets announce them.

    Frames that an edit list cuts away and VP8's invisible reference frames are left out.
    """

    def __init__(self, packets: Iterable[Any], codec: str, time_base: Fraction) -> None:
        self.time_base = time_base
        shown = [packet for packet in packets if _is_shown(packet, codec)]
        self.total = len(shown)
        self.pts: np.ndarray | None = None  # int64 [total], ascending, in ticks of time_base
        self._last_duration = 0
        stamps = [packet.pts for packet in shown]
        order = [packet.dts for packet in shown if packet.dts is not None]
        # After a jump backwards (two recordings in one file) timestamps no longer name a frame.
        if stamps and None not in stamps and order == sorted(order):
            self.pts = np.unique(np.array(stamps, dtype=np.int64))
            self.total = len(self.pts)
            self._last_duration = max(shown, key=lambda packet: packet.pts).duration or 0

    def start_at(self, pts: int | None) -> None:
        """Leave out what comes before the first frame that the decoder gives.

        A recording may begin between key frames; what lies before the first one is never shown.
        """
        if self.pts is not None and pts is not None:
            later = self.pts[self.pts >= pts]
            if len(later):
                self.pts, self.total = later, len(later)

    def place(self, pts: int | None, count: int) -> int:
        """The place of the frame that was decoded as number `count`."""
        if self.pts is None or pts is None:
            return count
        return max(0, int(np.searchsorted(self.pts, pts, side="right")) - 1)

    def timeline(self) -> Timeline:
        """Total and, for a variable frame rate, times."""
        if self.pts is None or self.total < 2:
            return Timeline(self.total, period=self._last_duration * float(self.time_base))
        steps = np.diff(self.pts)
        if steps.max() - steps.min() <= max(_JITTER_TICKS, _JITTER_SHARE * steps.mean()):
            return Timeline(self.total, period=float(steps.mean()) * float(self.time_base))
        last = self._last_duration or int(np.median(steps))
        ticks = np.append(self.pts, self.pts[-1] + last)
        return Timeline(self.total, ticks * float(self.time_base))

    def interval(self) -> tuple[float, float]:
        """The median and the longest time between two frames, seconds; 0 where unknown."""
        if self.pts is None or self.total < 2:
            return 0.0, 0.0
        steps = np.diff(self.pts) * float(self.time_base)
        return float(np.median(steps)), float(steps.max())


def _is_shown(packet: Any, codec: str) -> bool:
    if not packet.size or packet.is_discard:
        return False
    # RFC 6386, 9.1: bit 4 of a VP8 frame is show_frame.
    return codec != "vp8" or bool(memoryview(packet)[0] & 0x10)
