"""The windows of a video that are embedded one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.sampling import Together
from svilm_fast.data.segments import FrameRange, InSegment, Segment
from svilm_fast.data.timeline import Timeline
from svilm_fast.inference.clips import centre_crop, decoded_side, frame_choice
from svilm_fast.inference.config import PretrainedConfig

# Decoded frames of one call, in bytes; a call reads at least one window.
CALL_BYTES = 256 << 20
_ROUNDING_S = 1e-6


def video_seconds(timeline: Timeline) -> float:
    """Return how long a video lasts, in seconds; 0 if its frames have no times."""
    if timeline.edges is not None:
        return float(timeline.edges[-1] - timeline.edges[0])
    return timeline.total * timeline.period


def windows_of(seconds: float, window: float, stride: float) -> list[Segment]:
    """Cut a video of `seconds` into windows of `window` seconds, one every `stride` seconds.

    The last window ends with the video, and is the only one of a video that is shorter.
    """
    last = seconds - window
    if last <= _ROUNDING_S:
        return [(0.0, seconds)]
    starts = [step * stride for step in range(math.floor(last / stride + _ROUNDING_S) + 1)]
    if last - starts[-1] > _ROUNDING_S * max(1.0, last):
        starts.append(last)
    return [(start, min(start + window, seconds)) for start in starts]


def segment_of(window: Segment, seconds: float) -> Segment | None:
    """Return the segment to decode for a window; None: the whole video."""
    start, end = window
    reaches_end = end >= seconds - _ROUNDING_S
    if start == 0.0 and reaches_end:
        return None
    # An end that is computed from the duration may lie a rounding error beyond the last frame.
    return start, math.inf if reaches_end else end


def read_timeline(data: bytes, config: PretrainedConfig) -> Timeline:
    """Read when a video's frames are shown, decoding only the first. Raises DataError."""
    clip = decode_limited(data, FrameRange(0, 1), short_side=16, limits=config.reading.limits)
    return clip.timeline


def read_windows(
    data: bytes, windows: Sequence[Segment], seconds: float, config: PretrainedConfig
) -> Iterator[Tensor]:
    """Yield batches of clips uint8 [b, F, size, size, 3] of the windows in order.

    Each call of the decoder reads as many windows as CALL_BYTES hold. Raises DataError.
    """
    choice, reading = frame_choice(config), config.reading
    side = decoded_side(config)
    of_a_window = 3 * config.video.frames * side * side * 2  # frames are up to twice as long
    size = max(1, CALL_BYTES // of_a_window)
    for first in range(0, len(windows), size):
        parts = [
            InSegment(choice, segment_of(window, seconds))
            for window in windows[first : first + size]
        ]
        together = Together(tuple(parts))
        clip = decode_limited(
            data, together, short_side=side, limits=reading.limits, decoder=reading.decoder
        )
        decoded = together(clip.timeline)
        rows = [np.searchsorted(decoded, part(clip.timeline)) for part in parts]
        clips = [centre_crop(torch.from_numpy(clip.frames[row]), config) for row in rows]
        yield torch.stack(clips)
