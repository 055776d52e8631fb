"""How a decoded frame is displayed: pixel aspect, turns and mirroring, as the ffmpeg command."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np


def square_pixels(width: int, height: int, aspect: Any) -> tuple[int, int]:
    """The size at which a frame with pixels of this aspect (width / height) is displayed.

    The height stays; `aspect` None or not positive means square pixels.
    """
    if not aspect or aspect <= 0:
        return width, height
    return max(1, round(width * aspect)), height


def display_matrix(frame: Any) -> tuple[int, ...] | None:
    """The nine numbers of a PyAV frame's display matrix, or None."""
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)
    return struct.unpack("=9i", bytes(data)) if data is not None else None


def orientation(matrix: Sequence[int] | None) -> tuple[int, bool, bool]:
    """Quarter turns (anticlockwise), then whether to mirror left-right and top-bottom.

    Follows the automatic rotation of FFmpeg's command line (fftools/ffmpeg_filter.c); an angle
    between two quarter turns is rounded to the nearest one.
    """
    if matrix is None:
        return 0, False, False
    scales = math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])
    if 0.0 in scales:
        return 0, False, False
    angle = math.degrees(math.atan2(matrix[1] / scales[1], matrix[0] / scales[0]))
    quarter = round(angle / 90) % 4  # clockwise
    if quarter == 0:
        return 0, False, matrix[4] < 0
    if quarter == 2:
        return 0, matrix[0] < 0, matrix[4] < 0
    # transpose filter: clock and cclock turn, clock_flip and cclock_flip also mirror top-bottom
    mirrored = matrix[3] > 0 if quarter == 1 else matrix[3] < 0
    if not mirrored:
        return 4 - quarter, False, False
    return (1 if quarter == 1 else 3), False, True


def arrange(image: np.ndarray, turn: tuple[int, bool, bool]) -> np.ndarray:
    """Turn and mirror an image [h, w, 3] as `orientation` says."""
    quarters, left_right, top_bottom = turn
    if quarters:
        image = np.rot90(image, quarters)
    if left_right:
        image = image[:, ::-1]
    return image[::-1] if top_bottom else image


def to_rgb(reformatter: Any, frame: Any, size: tuple[int, int]) -> np.ndarray:
    """The frame as uint8 [height, width, 3], RGB, scaled to `size` (width, height).

    The array is a view of the scaler's frame: rows may be padded.
    """
    options = {"width": size[0], "height": size[1], "format": "rgb24", "interpolation": "AREA"}
    if "threads" in (type(reformatter).reformat.__doc__ or ""):
        options["threads"] = 1  # starting scaler threads takes longer than scaling small frames
    scaled = reformatter.reformat(_progressive(frame), **options)
    plane = scaled.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: scaled.height]
    return rows[:, : 3 * scaled.width].reshape(scaled.height, scaled.width, 3)


def _progressive(frame: Any) -> Any:
    """The frame without the flag for interlaced frames, with which the scaler converts each field
    for itself; the ffmpeg command does not. PyAV cannot clear the flag, so a copy is made.
    """
    if not frame.interlaced_frame:
        return frame
    copy = type(frame)(frame.width, frame.height, frame.format.name)
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    for source, target in zip(frame.planes, copy.planes, strict=True):
        rows, used = source.height, min(source.line_size, target.line_size)  # padding may differ
        lines = np.frombuffer(source, np.uint8).reshape(rows, -1)[:, :used]
        np.frombuffer(target, np.uint8).reshape(rows, -1)[:, :used] = lines
    return copy
