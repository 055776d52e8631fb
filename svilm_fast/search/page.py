"""Writes the moments found as one HTML page that works from disk."""

from __future__ import annotations

import base64
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from svilm_fast.core.errors import UserError
from svilm_fast.core.files import write_atomically
from svilm_fast.core.messages import single_line
from svilm_fast.core.text import counted
from svilm_fast.data.errors import DataError
from svilm_fast.inference.config import PretrainedConfig
from svilm_fast.report.page import fill_template
from svilm_fast.report.theme import hex_colour
from svilm_fast.search.index import VideoIndex
from svilm_fast.search.regions import (
    ShownMoment,
    draw_regions,
    frames_of,
    masks_on_frames,
    noun_colours,
    place_of,
)

FRAMES, SHORT_SIDE = 4, 240
GENERATOR = '<meta name="generator" content="svilm search">'


@dataclass(frozen=True)
class PictureTab:
    """A row of pictures of a moment: label, colour ("" for none), note, and frames as data URLs."""

    label: str
    colour: str
    note: str
    images: list[str]


@dataclass(frozen=True)
class MomentCard:
    """A moment on the page. link: to the file, at the moment's start. share: of the best score."""

    rank: int
    name: str
    link: str
    span: str
    score: str
    share: float
    tabs: list[PictureTab]


def check_page(path: Path) -> None:
    """Raise UserError if a file is there that `write_search_page` did not write."""
    if not os.path.lexists(path):
        return
    if not path.is_file() or GENERATOR.encode() not in _beginning(path):
        raise UserError(f"{path} exists and is no page of `svilm search`; choose another name")


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def write_search_page(
    path: Path,
    query: str,
    shown: Sequence[ShownMoment],
    index: VideoIndex,
    config: PretrainedConfig,
    model: str,
) -> None:
    """Write the page; the card of a video that cannot be read says why.

    query: the text that was asked for. model: its name on the page.
    """
    best = max((each.moment.score for each in shown), default=0.0)
    cards = [_card(rank, each, best, path, config) for rank, each in enumerate(shown, 1)]
    windows = sum(len(video.windows) for video in index.videos.values())
    usable = len(index.videos) - len(index.skipped)
    page = fill_template(
        "search.html",
        package="svilm_fast.search",
        name=query,
        subtitle=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=[],
        sections=[],
        facts={},
        generator=GENERATOR,
        moments=cards,
        skipped=index.skipped,
        summary=f"{counted(len(cards), 'moment')} of {counted(windows, 'window')} in "
        f"{counted(usable, 'video')}",
        model=model,
        frames=FRAMES,
        most_tabs=max((len(card.tabs) for card in cards), default=1),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())


def moment_span(start: float, end: float) -> str:
    """Format a time span: "1:02.5 to 1:07.5"; "whole video" if times are not known."""
    if end <= start:
        return "whole video"
    return f"{_clock(start)} to {_clock(end)}"


def _clock(seconds: float) -> str:
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    return f"{minutes}:{rest / 10:04.1f}"


def link_to(page: Path, video: Path, start: float) -> str:
    """Return the address of a video relative to a page, at a time in seconds."""
    relative = os.path.relpath(video.resolve(), page.resolve().parent)
    # Names are bytes: not all of them are text.
    return f"{quote(os.fsencode(Path(relative).as_posix()))}#t={start:.2f}"


def _card(
    rank: int, shown: ShownMoment, best: float, page: Path, config: PretrainedConfig
) -> MomentCard:
    moment = shown.moment
    return MomentCard(
        rank=rank,
        name=moment.name,
        link=link_to(page, moment.path, moment.start),
        span=moment_span(moment.start, moment.end),
        score=f"{moment.score:.3f}",
        share=max(0.0, moment.score / best) if best > 0 else 0.0,
        tabs=_tabs(shown, config),
    )


def _tabs(shown: ShownMoment, config: PretrainedConfig) -> list[PictureTab]:
    try:
        frames = frames_of(shown.moment, FRAMES, SHORT_SIDE, config)
    except (OSError, DataError) as error:
        return [PictureTab("frames", "", f"no frames: {single_line(error)}", [])]
    plain = PictureTab("frames", "", shown.problem, [_data_url(frame) for frame in frames])
    if shown.grounded is None:
        return [plain]
    grounded, colours = shown.grounded, noun_colours(len(shown.nouns))
    masks = masks_on_frames(grounded, frames, config)
    tabs, places = [], []
    for place, noun in enumerate(grounded.nouns):
        best = int(grounded.attention[place].argmax())
        share = float(grounded.attention[place, best])
        where = place_of(grounded.masks[place].numpy())
        places.append(f"{noun}: {where}")
        one = slice(place, place + 1)
        drawn = [draw_regions(f, masks[one, i], colours[one]) for i, f in enumerate(frames)]
        note = f"{where}; attention {share:.0%} on group {best}"
        urls = [_data_url(each) for each in drawn]
        tabs.append(PictureTab(noun, hex_colour(colours[place]), note, urls))
    if len(tabs) > 1:
        drawn = [draw_regions(f, masks[:, i], colours) for i, f in enumerate(frames)]
        urls = [_data_url(each) for each in drawn]
        tabs.insert(0, PictureTab("all nouns", "", "; ".join(places), urls))
    return [*tabs, plain]


def _data_url(frame: np.ndarray) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(frame)).decode()


def encode_jpeg(frame: np.ndarray, quality: int = 4) -> bytes:
    """Encode uint8 [h, w, 3] as JPEG; quality from 2 (best) to 31."""
    import av

    context = av.CodecContext.create("mjpeg", "w")
    context.width, context.height = frame.shape[1], frame.shape[0]
    context.pix_fmt, context.time_base = "yuvj420p", Fraction(1, 1)
    context.options = {"qmin": str(quality), "qmax": str(quality)}
    source: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    packets = [*context.encode(source.reformat(format="yuvj420p")), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
