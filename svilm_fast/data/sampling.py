"""Which frames of a video are looked at (papers: a random frame per segment, or its middle)."""

from __future__ import annotations

import numpy as np

from svilm_fast.data.errors import ShortClipError


def choose_frames(
    total: int, frames: int, uniform: np.ndarray | None, *, short_clip: str = "repeat"
) -> np.ndarray:
    """Cut a video of `total` frames in `frames` equal segments and take one frame of each.

    `uniform` float [frames] in [0, 1) draws the frame inside each segment (training); None takes
    the middle (evaluation). A video with fewer frames repeats some, or raises ShortClipError with
    `short_clip="skip"`. Returns int64 [frames], ascending.
    """
    if total < frames and short_clip == "skip":
        raise ShortClipError(
            f"{total} frames, and {frames} are asked (data.short_clip=repeat keeps such clips)"
        )
    edges = np.arange(frames + 1) * (total / frames)
    if total >= frames:
        # whole frames only: neighbours never share a frame
        edges = np.floor(edges)
    width = np.diff(edges)
    offset = 0.5 * np.ones(frames) if uniform is None else np.asarray(uniform, dtype=np.float64)
    index = np.floor(edges[:-1] + offset * width).astype(np.int64)
    return np.clip(index, 0, total - 1)
