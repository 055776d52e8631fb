"""The codes of compressed clips for the device: frames, crop and mirroring without decoding."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from svilm_fast.data.augment import Window, centre_window, speaks_of_direction
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError, PaletteError
from svilm_fast.data.palettes.decode import check_compression, named_errors
from svilm_fast.data.palettes.format import MOST_ENTRIES, PaletteClip, PixelBlock, read_clip
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.timeline import Timeline
from svilm_fast.data.views import ClipViews

_LOOKED_AT = 16  # clips, for the first that can be read


@dataclass(frozen=True)
class CodeWindow:
    """What is read of a clip: frames, crop and mirroring, all on the boundaries of blocks.

    frames, image_size: of the clip. Crops are `image_size` pixels of the stored frames, not scaled.
    """

    block: PixelBlock
    frames: int
    image_size: int

    def __post_init__(self) -> None:
        block = self.block
        if (
            self.frames % block.time
            or self.image_size % block.height
            or self.image_size % block.width
        ):
            raise PaletteError(
                f"blocks of {'x'.join(map(str, block))} do not fill {self.frames} frames of "
                f"{self.image_size} pixels (video.frames, video.image_size): set "
                "data.decompress=worker"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a clip's codes: along time, height and width."""
        return self.block.grid(self.frames, self.image_size, self.image_size)

    @classmethod
    def of(cls, table: SampleTable, config: DataConfig, frames: int, image_size: int) -> CodeWindow:
        """The windows of a data set, whose clips all have the blocks of the first.

        Raises PaletteError where none of the first clips can be read.
        """
        error: DataError | None = None
        for place in itertools.islice(range(len(table)), _LOOKED_AT):
            try:
                return cls(_clip(table, config, place).block, frames, image_size)
            except DataError as found:
                error = error or found
        raise PaletteError(f"no compressed clip can be read: {error}")

    def read(
        self,
        table: SampleTable,
        place: int,
        config: DataConfig,
        drawn: tuple[np.ndarray, np.ndarray] | None,
        caption: str,
        out: Tensor,
    ) -> tuple[ClipViews, np.ndarray]:
        """Read a sample and `cut` it. Raises DataError that names sample and shard."""
        clip = _clip(table, config, place)
        with named_errors(table.named(place)):
            if table.segment(place) is not None:
                raise PaletteError(
                    "the sample is a segment of a compressed clip: set data.decompress=worker"
                )
            return self.cut(clip, config, drawn, caption, out)

    def cut(
        self,
        clip: PaletteClip,
        config: DataConfig,
        drawn: tuple[np.ndarray, np.ndarray] | None,
        caption: str,
        out: Tensor,
    ) -> tuple[ClipViews, np.ndarray]:
        """The view of a clip with its codes in `out` [1, *shape], and its palette [256, V].

        drawn: numbers in [0, 1) of the frames [F] and of the crop [DRAWS]; None: evaluation.
        The palette is filled up with zeros, and mirrored where the clip is.
        """
        block, size = self.block, self.image_size
        if clip.block != block:
            raise PaletteError(
                f"blocks of {'x'.join(map(str, clip.block))}, and the first clip has "
                f"{'x'.join(map(str, block))}: compress all with the same --vectors"
            )
        if min(clip.height, clip.width) < size:
            raise PaletteError(
                f"frames of {clip.width} x {clip.height} pixels are stored and video.image_size="
                f"{size}: set data.decompress=worker, or compress with --short-side {size} or more"
            )
        numbers = None if drawn is None else drawn[0][:: block.time]
        rows = self._rows(clip, numbers, config)
        window = self._window(clip, None if drawn is None else drawn[1], config, caption)
        top, left = window.y // block.height, window.x // block.width
        codes = clip.codes(rows, top, left, self.shape[1:])
        palette = np.zeros((MOST_ENTRIES, block.values), np.uint8)
        entries = clip.palette.reshape(-1, *block, 3)
        if window.flipped:
            codes, entries = codes[..., ::-1], entries[:, :, :, ::-1]
        palette[: len(entries)] = entries.reshape(len(entries), -1)
        out[0].numpy()[:] = codes
        places = (rows[:, None] * block.time + np.arange(block.time)).reshape(-1)
        index = clip.index[np.minimum(places, clip.frames - 1)]
        crop = window.fractions(clip.width, clip.height)
        return ClipViews(out, index[None], [crop], [window.flipped]), palette

    def _rows(
        self, clip: PaletteClip, numbers: np.ndarray | None, config: DataConfig
    ) -> np.ndarray:
        """Rows of blocks along time, chosen as frames are."""
        count = self.frames // self.block.time
        choice = FrameChoice(count, numbers, config.short_clip, config.frames_by == "time")
        line, whole = clip.timeline, -(-clip.frames // self.block.time)
        if config.short_clip == "skip" and clip.frames < self.frames:
            FrameChoice(self.frames, None, "skip")(line)
        edges = None
        if line.edges is not None:
            edges = np.append(line.edges[: -1 : self.block.time], line.edges[-1])
        return choice(Timeline(whole, edges, line.period * self.block.time))

    def _window(
        self, clip: PaletteClip, numbers: np.ndarray | None, config: DataConfig, caption: str
    ) -> Window:
        size, block = self.image_size, self.block
        if numbers is None:
            centre = centre_window(clip.width, clip.height, min(clip.width, clip.height) / size)
            x, y, flipped = centre.x, centre.y, False
        else:
            x = min(int(float(numbers[2]) * (clip.width - size + 1)), clip.width - size)
            y = min(int(float(numbers[3]) * (clip.height - size + 1)), clip.height - size)
            augment = config.augment
            may_flip = augment.flip_directional or not speaks_of_direction(caption)
            flipped = may_flip and float(numbers[4]) < augment.flip
        x, y = x - x % block.width, y - y % block.height
        return Window(x, y, size, size, flipped)


def _clip(table: SampleTable, config: DataConfig, place: int) -> PaletteClip:
    data = table.read_video(place)
    with named_errors(table.named(place)):
        check_compression(data, config, required=True)
        return read_clip(data, config.limits)
