"""Several views of a sample: clips x crops in evaluation, further crops in training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from svilm_fast.data.augment import DRAWS, Window, centre_window, cut, random_window
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode import Choose
from svilm_fast.data.sampling import FrameChoice, UniformClips

CROPS = (1, 3)


@dataclass(frozen=True)
class CropGroup:
    """Further views of a training clip, all of one size (multi-crop).

    count: views. frames, image_size: of each. crop_scale: smallest and largest crop, as shares of
    the frame's area. The crop's shape and mirroring are those of `data.augment`.
    """

    count: int
    frames: int
    image_size: int
    crop_scale: tuple[float, float]

    def __post_init__(self) -> None:
        if min(self.count, self.frames, self.image_size) < 1:
            raise ValueError(f"{self}: count, frames and image_size must be at least 1")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"{self}: crop_scale must be 0 < smallest <= largest <= 1")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the frames of a sample."""
        return self.count, self.frames, self.image_size, self.image_size, 3

    @property
    def numbers(self) -> int:
        """Random numbers that a sample takes."""
        return self.count * (self.frames + DRAWS)


@dataclass(frozen=True)
class Views:
    """The views of each sample of a data set. The default is one.

    clips, crops: of evaluation, `clips * crops` views. The clips of F frames share the `clips * F`
    middles of equal parts of the video. `interleaved`: clip c takes every `clips`-th of them, from
    the c-th on, so that it spans the whole video as a training clip does. `consecutive`: clip c
    takes the c-th run of F. `crops` 1 is the centre crop; 3 are squares of the same size at the
    left, centre and right of a wide frame, or top, centre and bottom of a tall one.
    groups: further views of training clips. The ordinary view stays as it is without them.
    """

    clips: int = 1
    crops: int = 1
    spread: Literal["interleaved", "consecutive"] = "interleaved"
    groups: tuple[CropGroup, ...] = ()

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops not in CROPS:
            raise ValueError(f"clips must be at least 1 and crops 1 or 3: {self}")
        if self.spread not in ("interleaved", "consecutive"):
            raise ValueError(f"spread must be interleaved or consecutive: {self}")

    @property
    def count(self) -> int:
        """Evaluation views of a sample."""
        return self.clips * self.crops

    def check(self, train: bool) -> None:
        """Raise ValueError for views that the data set does not make."""
        if train and self.count > 1:
            raise ValueError(f"clips and crops are views of evaluation: {self}")
        if not train and self.groups:
            raise ValueError(f"groups are views of training: {self}")


ONE_VIEW = Views()


def crop_windows(width: int, height: int, margin: float, crops: int) -> list[Window]:
    """The evaluation crops of a frame."""
    centre = centre_window(width, height, margin)
    if crops == 1:
        return [centre]
    side = centre.width
    if width >= height:
        places = [(0, centre.y), (centre.x, centre.y), (width - side, centre.y)]
    else:
        places = [(centre.x, 0), (centre.x, centre.y), (centre.x, height - side)]
    return [Window(x, y, side, side) for x, y in places]


@dataclass
class ClipViews:
    """V views of a sample, all of one size."""

    frames: Tensor  # uint8 [V, F, H, W, 3]
    frame_index: np.ndarray  # int64 [V, F]
    crop: list[tuple[float, float, float, float]]
    flipped: list[bool]


Chosen = tuple[np.ndarray, np.ndarray]  # frames uint8 [n, h, w, 3] and their places int64 [n]


def frame_choices(views: Views, choice: FrameChoice, drawn: Sequence[np.ndarray]) -> list[Choose]:
    """What is decoded for a sample: the frames of the clip or clips, then of every further view.

    choice: of the clip. drawn: float [CropGroup.numbers] for each group.
    """
    choices: list[Choose] = [UniformClips(choice, views.clips) if views.clips > 1 else choice]
    for group, numbers in zip(views.groups, drawn, strict=True):
        choices += [
            FrameChoice(group.frames, row, choice.short_clip, choice.by_time)
            for row in numbers.reshape(group.count, -1)[:, : group.frames]
        ]
    return choices


def cut_views(
    views: Views,
    chosen: Sequence[Chosen],
    numbers: np.ndarray | None,
    drawn: Sequence[np.ndarray],
    config: DataConfig,
    caption: str,
    out: Sequence[Tensor],
) -> list[ClipViews]:
    """Cut the clip or its evaluation views, then those of each group.

    chosen: the frames of `frame_choices`. numbers: float [DRAWS], of the clip's training crop;
    None: evaluation. drawn: as in `frame_choices`. out: uint8, where each of them is written.
    """
    (frames, places), rest = chosen[0], iter(chosen[1:])
    height, width = frames.shape[1:3]
    if numbers is None:
        windows = crop_windows(width, height, config.resize_margin, views.crops)
    else:
        windows = [random_window(width, height, numbers, config.augment, caption)]
    rows = np.arange(len(frames))
    clips = (
        rows.reshape(views.clips, -1)
        if views.spread == "consecutive"
        else rows.reshape(-1, views.clips).T
    )
    shown = [(frames[clip], places[clip]) for clip in clips for _ in windows]
    found = [_cut(shown, windows * views.clips, out[0])]
    for group, uniforms, into in zip(views.groups, drawn, out[1:], strict=True):
        augment = config.augment.model_copy(update={"crop_scale": group.crop_scale})
        windows = [
            random_window(width, height, row, augment, caption)
            for row in uniforms.reshape(group.count, -1)[:, group.frames :]
        ]
        found.append(_cut(list(itertools.islice(rest, group.count)), windows, into))
    return found


def _cut(chosen: Sequence[Chosen], windows: Sequence[Window], out: Tensor) -> ClipViews:
    """Cut a window of the frames of each view, into `out` [V, F, H, W, 3]."""
    for (frames, _), window, view in zip(chosen, windows, out, strict=True):
        cut(frames, window, out.shape[2], view)
    height, width = chosen[0][0].shape[1:3]
    return ClipViews(
        out,
        np.stack([places for _, places in chosen]),
        [window.fractions(width, height) for window in windows],
        [window.flipped for window in windows],
    )
