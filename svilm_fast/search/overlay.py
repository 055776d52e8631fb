"""A video of the moments found, with the regions of the nouns drawn on every frame."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np

from svilm_fast.core.errors import UserError
from svilm_fast.core.messages import single_line
from svilm_fast.core.terminal import printable
from svilm_fast.data.errors import DataError
from svilm_fast.data.world.video import h264_encoder
from svilm_fast.inference.config import PretrainedConfig
from svilm_fast.report.canvas import MARGIN, Canvas, text_width, wrap
from svilm_fast.report.theme import DARK, drawing, hex_colour, rgb
from svilm_fast.search.regions import (
    ShownMoment,
    draw_regions,
    frames_of,
    masks_on_frames,
    noun_colours,
)

WIDTH, HEIGHT, BAR = 640, 360, 56  # pixels of the picture, and of the text below it
FPS = 25
# A longer moment shows this many frames, each for longer, so that it takes no more memory.
MOST_FRAMES = 250
COMMENT = "moments found by svilm search"
_DPI = 100


def check_overlay(path: Path, videos: Path) -> None:
    """Raise UserError if a file is there that `write_overlay` did not write.

    Also for a place under the folder `videos`, whose videos are searched: it would be one of them.
    """
    if path.resolve().is_relative_to(videos.resolve()):
        raise UserError(
            f"{path} lies in {videos}, so that the next search would find it: write the overlay to "
            "another folder"
        )
    if not os.path.lexists(path):
        return
    if not path.is_file() or not _holds(path, COMMENT.encode()):
        raise UserError(f"{path} exists and is no overlay of `svilm search`; choose another name")


def _holds(path: Path, text: bytes) -> bool:
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def write_overlay(
    path: Path, shown: Sequence[ShownMoment], config: PretrainedConfig
) -> dict[str, str]:
    """Write the moments one after another as MP4 (H.264, 25 frames per second).

    Returns the videos that cannot be read, with reasons; their moments are left out. Raises
    UserError if none can be read.
    """
    import av

    left_out: dict[str, str] = {}
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            container.metadata["comment"] = COMMENT
            stream = cast("av.VideoStream", container.add_stream(h264_encoder(), rate=FPS))
            stream.width, stream.height = WIDTH, HEIGHT + BAR
            stream.pix_fmt = "yuv420p"
            stream.time_base = Fraction(1, FPS)
            for rank, each in enumerate(shown, 1):
                try:
                    frames = _frames(each, config)
                except (OSError, DataError) as error:
                    left_out[each.moment.name] = single_line(error)
                    continue
                bar, total = _bar(rank, each), _length(each)
                for step in range(total):
                    frame = _letterboxed(frames[step * len(frames) // total])
                    picture = np.concatenate([frame, bar])
                    encoded = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    container.mux(stream.encode(encoded))
            if len(left_out) == len({each.moment.name for each in shown}):
                name, reason = next(iter(left_out.items()))
                raise UserError(f"no overlay, because no moment can be read: {name}: {reason}")
            container.mux(stream.encode(None))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return left_out


def _length(shown: ShownMoment) -> int:
    """Frames that a moment takes in the overlay."""
    return max(1, round((shown.moment.end - shown.moment.start) * FPS))


def _frames(shown: ShownMoment, config: PretrainedConfig) -> np.ndarray:
    """Read the frames of a moment and draw its regions: uint8 [n, h, w, 3]."""
    frames = frames_of(shown.moment, min(MOST_FRAMES, _length(shown)), HEIGHT, config)
    if shown.grounded is not None:
        colours = noun_colours(len(shown.nouns))
        masks = masks_on_frames(shown.grounded, frames, config)
        frames = np.stack(
            [draw_regions(frame, masks[:, i], colours) for i, frame in enumerate(frames)]
        )
    return frames


def _letterboxed(frame: np.ndarray) -> np.ndarray:
    """Fit a frame into HEIGHT x WIDTH pixels on black."""
    from av.video.frame import VideoFrame

    height, width = frame.shape[:2]
    scale = min(HEIGHT / height, WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size != (width, height):
        source = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        frame = source.reformat(*size, format="rgb24").to_ndarray()
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    top, left = (HEIGHT - size[1]) // 2, (WIDTH - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = frame
    return canvas


def _bar(rank: int, shown: ShownMoment) -> np.ndarray:
    """The text below a moment: its nouns in their colours, file, time and score."""
    moment = shown.moment
    with drawing(DARK):
        canvas = Canvas(WIDTH / _DPI - 2 * MARGIN, BAR / _DPI - 2 * MARGIN, DARK)
        place = f"{rank}  {moment.name}  {moment.start:.1f} to {moment.end:.1f} s"
        text = printable(f"{place}  score {moment.score:.3f}", lines=False)
        canvas.note(0.05, 0.0, wrap(text, canvas.width - 0.1, 8.5, 1)[0])
        left = 0.05
        for noun, colour in zip(shown.nouns, noun_colours(len(shown.nouns)), strict=True):
            name = printable(noun, lines=False)
            canvas.box(left, 0.26, 0.13, 0.13, fill=hex_colour(colour))
            canvas.text(left + 0.18, 0.23, name, size=9.5)
            left += 0.42 + text_width(name, 9.5)
        buffer = io.BytesIO()
        figure = canvas.figure
        figure.savefig(buffer, format="rgba", dpi=_DPI)
        import matplotlib.pyplot as plt

        plt.close(figure)
    bar = np.empty((BAR, WIDTH, 3), np.uint8)
    bar[:] = rgb(DARK.surface)
    width, height = (round(side * _DPI) for side in figure.get_size_inches())
    drawn = np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[:BAR, :WIDTH, :3]
    bar[: drawn.shape[0], : drawn.shape[1]] = drawn
    return bar
