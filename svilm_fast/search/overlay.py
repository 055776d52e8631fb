"""A video of the moments found, with the regions of the nouns drawn on every frame."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np

from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import printable
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


def check_overlay(path: Path) -> None:
    """Raise UserError if a file is there that `write_overlay` did not write."""
    if not os.path.lexists(path):
        return
    if not path.is_file() or COMMENT.encode() not in path.read_bytes():
        raise UserError(f"{path} exists and is no overlay of `svilm search`; choose another name")


def write_overlay(path: Path, shown: Sequence[ShownMoment], config: PretrainedConfig) -> None:
    """Write the moments one after another as MP4 (H.264, 25 frames per second).

    Raises OSError or DataError for a video that cannot be read.
    """
    import av

    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            container.metadata["comment"] = COMMENT
            stream = cast("av.VideoStream", container.add_stream(h264_encoder(), rate=FPS))
            stream.width, stream.height = WIDTH, HEIGHT + BAR
            stream.pix_fmt = "yuv420p"
            stream.time_base = Fraction(1, FPS)
            for rank, each in enumerate(shown, 1):
                bar = _bar(rank, each)
                for frame in _frames(each, config):
                    picture = np.concatenate([_letterboxed(frame), bar])
                    encoded = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    container.mux(stream.encode(encoded))
            container.mux(stream.encode(None))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _frames(shown: ShownMoment, config: PretrainedConfig) -> Iterator[np.ndarray]:
    """Yield the frames of a moment with its regions, uint8 [h, w, 3]."""
    moment = shown.moment
    total = max(1, round((moment.end - moment.start) * FPS))
    count = min(MOST_FRAMES, total)
    frames = frames_of(moment, count, HEIGHT, config)
    if shown.grounded is not None:
        colours = noun_colours(len(shown.nouns))
        masks = masks_on_frames(shown.grounded, frames, config)
        frames = np.stack(
            [draw_regions(frame, masks[:, i], colours) for i, frame in enumerate(frames)]
        )
    for step in range(total):
        yield frames[step * count // total]


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
