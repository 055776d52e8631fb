"""`svilm data inspect`: what a data set holds, as a table and as a contact sheet."""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track
from rich.table import Table

from svilm_fast.core.earlier_result import check_replaceable
from svilm_fast.core.terminal import printable
from svilm_fast.core.text import counted
from svilm_fast.core.units import bytes_text
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode_process import decode_limited, end_idle_processes
from svilm_fast.data.errors import DataError
from svilm_fast.data.order import Permutation
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.segments import InSegment, part

CAPTIONS_READ = 10_000  # of larger sets as many, drawn at random
_SIGN = "svilm data inspect"  # in every sheet; other files are not overwritten
_ROW_INCHES, _FRAME_INCHES, _TEXT_INCHES = 1.25, 1.15, 3.7


@dataclass(frozen=True)
class Look:
    """One sample that was decoded; `error` says why not."""

    id: str
    caption: str
    nouns: tuple[str, ...]
    bytes: int = 0
    frames: np.ndarray | None = None  # uint8 [F, h, w, 3]
    total: int = 0
    seconds: float | None = None  # None: the video has no timestamps
    size: tuple[int, int] = (0, 0)
    decode_ms: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class CaptionFacts:
    """Of some captions: how many each sample has, their words, their nouns."""

    samples: int
    per_sample: np.ndarray  # int64 [samples]
    words: np.ndarray  # int64 [captions]
    nouns: np.ndarray  # int64 [captions], nouns of those that have a list
    frequent: list[tuple[str, int]]


def drawn(table: SampleTable, count: int, seed: int) -> list[int]:
    """At most `count` places of a table, drawn without repeats, ascending."""
    count = min(count, len(table))
    places = Permutation(len(table), "inspect", seed)(np.arange(count))
    return sorted(places.tolist())


def look_at(
    table: SampleTable, places: list[int], config: DataConfig, *, frames: int, short_side: int
) -> list[Look]:
    """Decode `frames` frames of the samples at `places`; failures become `Look.error`."""
    looks = []
    try:
        if places:  # the start of the decoding process is no part of a clip's time
            _look(table, places[0], config, frames, short_side)
        for place in track(places, description="decoding", transient=True):
            looks.append(_look(table, place, config, frames, short_side))
    finally:
        end_idle_processes()
    return looks


def _look(table: SampleTable, place: int, config: DataConfig, frames: int, short_side: int) -> Look:
    sample = table[place]
    caption, nouns = next(iter(sample.captions), ""), next(iter(sample.nouns), None) or ()
    try:
        data = table.read_video(place)
        began = time.perf_counter()
        clip = decode_limited(
            data,
            InSegment(FrameChoice(frames, None), sample.segment),
            short_side=short_side,
            limits=config.limits,
        )
        taken = 1000 * (time.perf_counter() - began)
    except DataError as error:
        return Look(sample.id, caption, nouns, error=f"{error.reason}: {error}")
    shown = part(clip.timeline, sample.segment)[1]
    if shown.edges is not None:
        seconds: float | None = float(shown.edges[-1] - shown.edges[0])
    else:
        seconds = shown.total * shown.period or None
    return Look(
        sample.id,
        caption,
        nouns,
        len(data),
        clip.frames,
        shown.total,
        seconds,
        clip.source_size,
        taken,
    )


def caption_facts(table: SampleTable, seed: int) -> CaptionFacts:
    """Facts of the captions of at most CAPTIONS_READ samples."""
    places = drawn(table, CAPTIONS_READ, seed)
    frequent: Counter[str] = Counter()
    per_sample, words, nouns = [], [], []
    for place in places:
        sample = table[place]
        per_sample.append(len(sample.captions))
        words += [len(caption.split()) for caption in sample.captions]
        for found in sample.nouns:
            if found is not None:
                nouns.append(len(found))
                frequent.update(found)
    return CaptionFacts(
        len(places),
        np.array(per_sample),
        np.array(words),
        np.array(nouns, dtype=np.int64),
        frequent.most_common(10),
    )


def facts_table(table: SampleTable, facts: CaptionFacts, looks: list[Look], title: str) -> Table:
    """The facts of a data set for a terminal."""
    result = Table(box=None, pad_edge=False, title=title, show_header=False)
    result.add_column(no_wrap=True, style="bold")
    result.add_column(overflow="fold")
    result.add_row("samples", f"{len(table):,} usable, {len(table.rejected):,} refused")
    reasons = Counter(skip.reason for skip in table.rejected)
    for reason, count in reasons.most_common():
        example = next(skip for skip in table.rejected if skip.reason == reason)
        name = printable(example.sample, lines=False)
        result.add_row("", f"{count} x {reason}; for example {name}: {example.message}")
    for note, count in sorted((table.notes + table.noun_notes).items()):
        result.add_row("", f"{count} x {note}")
    some = "" if facts.samples == len(table) else f", of {facts.samples:,} samples drawn"
    result.add_row("captions per sample", _spread(facts.per_sample) + some)
    if len(facts.words):
        result.add_row("words per caption", _spread(facts.words) + some)
    if len(facts.nouns):
        result.add_row("nouns per caption", _spread(facts.nouns) + some)
        result.add_row("frequent nouns", ", ".join(f"{n} ({c:,})" for n, c in facts.frequent))
    good = [look for look in looks if not look.error]
    looked = f"{counted(len(looks), 'video')} decoded, {counted(len(looks) - len(good), 'failure')}"
    result.add_row("videos", looked)
    for look in looks:
        if look.error:
            result.add_row("", f"{printable(look.id, lines=False)}: {look.error}")
    if good:
        sizes = Counter(f"{look.size[0]} x {look.size[1]}" for look in good).most_common(4)
        result.add_row("frame size", ", ".join(f"{size} ({count})" for size, count in sizes))
        timed = np.array([look.seconds for look in good if look.seconds])
        if len(timed):
            result.add_row("duration, seconds", _spread(timed))
            rates = np.array([look.total / look.seconds for look in good if look.seconds])
            result.add_row("frames per second", _spread(rates))
        result.add_row("file size", bytes_text(int(np.median([look.bytes for look in good]))))
        result.add_row("decoding, ms a clip", _spread(np.array([look.decode_ms for look in good])))
    return result


def _spread(values: np.ndarray) -> str:
    """Median, 5th and 95th percentile."""
    low, middle, high = np.percentile(values, [5, 50, 95])
    if low == high:
        return f"{middle:.4g}"
    return f"median {middle:.4g}, 90 % between {low:.4g} and {high:.4g}"


def check_sheet(path: Path) -> None:
    """Raise DataError unless a contact sheet may be written to `path`."""
    if path.suffix.lower() != ".png":
        raise DataError(f"{path} must end in .png: a contact sheet is a PNG picture")
    if not path.parent.is_dir():
        raise DataError(f"the folder {str(path.parent)!r} of the contact sheet does not exist")
    try:
        check_replaceable(path, _SIGN)
    except ValueError as error:
        raise DataError(str(error)) from None


def draw_sheet(looks: list[Look], path: Path, title: str) -> None:
    """Write a contact sheet (PNG): the frames of each clip beside its caption and nouns."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    count = max((len(look.frames) for look in looks if look.frames is not None), default=1)
    width, height = count * _FRAME_INCHES + _TEXT_INCHES, len(looks) * _ROW_INCHES + 0.5
    figure = Figure(figsize=(width, height), dpi=110)
    figure.suptitle(printable(title, lines=False), x=0.01, y=1 - 0.12 / height, ha="left", va="top")
    row_height = _ROW_INCHES / height
    frame_width = _FRAME_INCHES / width
    for row, look in enumerate(looks):
        bottom = 1 - 0.5 / height - (row + 1) * row_height
        for column, frame in enumerate(() if look.frames is None else look.frames):
            axes = figure.add_axes(
                (column * frame_width + 0.004, bottom, 0.96 * frame_width, 0.94 * row_height)
            )
            axes.imshow(frame)
            axes.axis("off")
        left = count * frame_width + 0.012
        facts = look.error or (
            f"{look.size[0]} x {look.size[1]}, {counted(look.total, 'frame')}"
            + (f", {look.seconds:.1f} s" if look.seconds else "")
        )
        lines = [
            textwrap.shorten(look.id, 52, placeholder=" …"),
            *textwrap.wrap(look.caption, 52)[:3],
            *textwrap.wrap(", ".join(look.nouns), 52)[:1],
            textwrap.shorten(facts, 104, placeholder=" …"),
        ]
        text = "\n".join(printable(line, lines=False) for line in lines)
        top = bottom + 0.94 * row_height
        # `$` would begin a formula.
        figure.text(left, top, text, fontsize=7.5, va="top", wrap=True, parse_math=False)
    figure.savefig(path, metadata={"Software": _SIGN})
