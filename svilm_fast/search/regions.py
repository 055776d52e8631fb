"""The regions of a moment that the nouns of a text attend to, and frames to show them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion

from svilm_fast.core.errors import UserError
from svilm_fast.core.messages import single_line
from svilm_fast.data.augment import centre_window
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.errors import DataError
from svilm_fast.data.nouns import build_extractor
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.segments import InSegment
from svilm_fast.inference.clips import read_clip
from svilm_fast.inference.config import PretrainedConfig
from svilm_fast.inference.model import GroundedNouns, PretrainedModel
from svilm_fast.report.strips import upsample
from svilm_fast.report.theme import group_colours
from svilm_fast.search.ranking import Moment
from svilm_fast.search.windows import segment_of

FILL = 0.25  # share of a noun's colour in its region
SHADE = 0.5  # brightness outside the regions
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True)
class ShownMoment:
    """A moment with what its nouns attend to.

    grounded: None without nouns or group tokens, and where the video cannot be read; problem says
    why then.
    """

    moment: Moment
    grounded: GroundedNouns | None
    problem: str = ""

    @property
    def nouns(self) -> tuple[str, ...]:
        """The nouns that are grounded."""
        return () if self.grounded is None else self.grounded.nouns


def nouns_of(text: str, model: PretrainedModel, given: Sequence[str] = ()) -> list[str]:
    """Return the nouns to ground: those given, else those found in the text.

    A model without group tokens grounds none. Raises UserError if nouns are given to such a model.
    """
    if not model.can_ground:
        if given:
            raise UserError("this model has no group tokens: it cannot ground the nouns of --noun")
        return []
    if given:
        return list(dict.fromkeys(noun.strip() for noun in given if noun.strip()))
    return [noun.text for noun in build_extractor(model.settings.reading.nouns)(text)]


def show_moment(model: PretrainedModel, moment: Moment, nouns: Sequence[str]) -> ShownMoment:
    """Ground nouns in a moment."""
    if not nouns:
        return ShownMoment(moment, None)
    segment = segment_of((moment.start, moment.end), moment.seconds)
    try:
        clip = read_clip(moment.path, model.settings, segment)
    except (OSError, DataError) as error:  # the file has changed, or the machine is busy
        return ShownMoment(moment, None, f"no regions: {single_line(error)}")
    return ShownMoment(moment, model.ground_clip(clip, nouns))


def frames_of(moment: Moment, count: int, short_side: int, config: PretrainedConfig) -> np.ndarray:
    """Read `count` frames in the middles of equal parts of a moment: uint8 [count, h, w, 3]."""
    choice = InSegment(
        FrameChoice(count, None, "repeat"), segment_of((moment.start, moment.end), moment.seconds)
    )
    data = moment.path.read_bytes()
    clip = decode_limited(data, choice, short_side=short_side, limits=config.reading.limits)
    return clip.frames


def masks_on_frames(
    grounded: GroundedNouns, frames: np.ndarray, config: PretrainedConfig
) -> np.ndarray:
    """Return the regions on whole frames uint8 [n, h, w, 3] of the same moment: bool [K, n, h, w].

    The model reads the centre crop; outside of it there is no region.
    """
    count, height, width = frames.shape[:3]
    window = centre_window(width, height, config.reading.resize_margin)
    masks = grounded.masks.numpy()
    positions = (np.arange(count) + 0.5) * masks.shape[1] / count
    found = np.zeros((len(masks), count, height, width), bool)
    rows = slice(window.y, window.y + window.height)
    columns = slice(window.x, window.x + window.width)
    for noun, mask in enumerate(masks):
        for place, position in enumerate(positions.astype(int)):
            found[noun, place, rows, columns] = upsample(
                mask[position], window.height, window.width
            )
    return found


def draw_regions(frame: np.ndarray, masks: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colour and outline regions on a frame, and darken what belongs to none.

    frame: uint8 [h, w, 3]; masks: bool [K, h, w]; colours: uint8 [K, 3]. Of nouns with the same
    region, the later outline lies inside the earlier one.
    """
    inside = np.any(masks, axis=0, keepdims=True)[0][..., None]
    shown = np.where(inside, frame, SHADE * frame).astype(np.float64)
    width = max(1, min(frame.shape[:2]) // 90)
    for mask, colour in zip(masks, colours, strict=True):
        shown[mask] = (1 - FILL) * shown[mask] + FILL * colour
    covered = np.zeros(frame.shape[:2], bool)
    for mask, colour in zip(masks, colours, strict=True):
        free = mask & ~covered
        edge = free & ~binary_erosion(free, iterations=width)
        shown[edge] = colour
        covered |= edge
    return np.round(shown).astype(np.uint8)


def noun_colours(count: int) -> np.ndarray:
    """Return a colour for each noun: uint8 [count, 3]."""
    return group_colours(count)


def place_of(mask: np.ndarray) -> str:
    """Say where in the crop a region bool [P, h, w] lies: "top left", "all over", "no region"."""
    if not mask.any():
        return "no region"
    if mask.mean() > 0.6:
        return "all over"
    _, rows, columns = mask.nonzero()
    row = _ROWS[min(2, int(3 * (rows.mean() + 0.5) / mask.shape[1]))]
    column = _COLUMNS[min(2, int(3 * (columns.mean() + 0.5) / mask.shape[2]))]
    words = [word for word in (row, column) if word not in ("middle", "centre")]
    return " ".join(words) or "centre"
