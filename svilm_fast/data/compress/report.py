"""`svilm data compress --report`: codings of some clips as a table, JSON and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svilm_fast.core.earlier_result import check_replaceable
from svilm_fast.core.files import write_atomically, write_json
from svilm_fast.core.machine import package_version
from svilm_fast.core.terminal import printable
from svilm_fast.core.text import counted
from svilm_fast.data.compress.clustering import Clustering, KMeansEngine, Method, one_thread
from svilm_fast.data.compress.measure import (
    KEPT,
    PATCH,
    ROUNDS,
    TUBELET,
    Coding,
    H264Coding,
    JpegCoding,
    MeasuredCoding,
    PaletteCoding,
    measure,
)
from svilm_fast.data.compress.vectors import BLOCKS, Vectors
from svilm_fast.data.config import DataConfig
from svilm_fast.data.decode import DecodedClip
from svilm_fast.data.decode_process import decode_limited, end_idle_processes
from svilm_fast.data.errors import DataError
from svilm_fast.data.inspect import drawn
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.sampling import FrameChoice
from svilm_fast.data.segments import InSegment
from svilm_fast.data.skips import Skip
from svilm_fast.data.timeline import Timeline

_SIGN = "svilm data compress --report"  # in every file; others are not overwritten
_CLIPS_PER_PALETTE = 4
_PAGE, _DATA, _PICTURE = "compression.md", "compression.json", "compression.png"
_CELL_INCHES, _NAME_INCHES, _SHOWN = 1.5, 2.1, 4  # clips in the picture


def write_report(
    source: str,
    folder: Path,
    *,
    videos: str | None,
    clips: int,
    frames: int,
    short_side: int,
    sample: int,
    engine: KMeansEngine,
    seed: int,
) -> list[str]:
    """Measure codings of some clips of a source and write the table and pictures to `folder`.

    Each clip is `frames` frames, evenly spaced in time: the largest centred square of them whose
    side is a multiple of 16 pixels. Clips of which there is none, and those that cannot be decoded,
    are listed. Returns the page's lines. Raises DataError where nothing can be measured.
    """
    if frames % TUBELET:
        raise DataError(f"--frames {frames}: a report needs a multiple of {TUBELET}")
    config = DataConfig(train=source, videos=videos, captions="none")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_PAGE, _DATA, _PICTURE):
        try:
            check_replaceable(folder / name, _SIGN)
        except ValueError as error:
            raise DataError(str(error)) from None
    table = open_split(config, "train")
    names, looked, refused = _clips(table, drawn(table, clips, seed), config, frames, short_side)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_thread():
            rows = measure(codings(len(looked), sample, engine, seed), looked)
    finally:
        torch.set_num_threads(threads)
    shape = [list(clip.frames.shape) for clip in looked]
    facts = {
        "made_by": _SIGN,
        "clips": names,
        "refused": [vars(skip) for skip in refused],
        "shapes": shape,
        "sample": sample,
        "kmeans": engine,
        "kept_tokens": KEPT,
        "rounds": ROUNDS,
        "versions": {n: package_version(n) for n in ("numpy", "scikit-learn", "torch", "av")},
    }
    write_json(folder / _DATA, {**facts, "rows": [row.as_json() for row in rows]})
    lines = page(rows, facts)
    write_atomically(folder / _PAGE, "\n".join([*lines, ""]).encode())
    draw(rows, looked, names, folder / _PICTURE)
    return [*lines, f"wrote {_PAGE}, {_DATA} and {_PICTURE} to {folder}"]


def _clips(
    table: SampleTable, places: Sequence[int], config: DataConfig, frames: int, short_side: int
) -> tuple[list[str], list[DecodedClip], list[Skip]]:
    """Names and clips, and what cannot be measured. Raises DataError where nothing can."""
    names, looked, refused = [], [], []
    try:
        for place in places:
            try:
                looked.append(_clip(table, place, config, frames, short_side))
                names.append(table.id(place))
            except DataError as error:
                refused.append(Skip.of(table.id(place), error))
    finally:
        end_idle_processes()
    if not looked:
        first = refused[0]
        raise DataError(f"no clip can be measured; {first.sample}: {first.message}")
    return names, looked, refused


def _clip(
    table: SampleTable, place: int, config: DataConfig, frames: int, short_side: int
) -> DecodedClip:
    choose = InSegment(FrameChoice(frames, None), table.segment(place))
    data = table.read_video(place)
    clip = decode_limited(data, choose, short_side=short_side, limits=config.limits)
    height, width = clip.frames.shape[1:3]
    side = min(height, width) // PATCH * PATCH
    if side < PATCH:
        raise DataError(
            f"frames of {width} x {height} pixels; a report needs {PATCH} or more on each side"
        )
    top, left = (height - side) // 2, (width - side) // 2
    square = clip.frames[:, top : top + side, left : left + side]
    clip.frames = np.ascontiguousarray(square)
    clip.index = np.arange(frames, dtype=np.int64)
    clip.timeline = Timeline(frames, None, 1.0)
    return clip


def codings(clips: int, sample: int, engine: KMeansEngine, seed: int) -> list[Coding]:
    """The rows of the table for so many clips."""

    def how(method: Method, bits: int) -> Clustering:
        used = engine if method is Method.KMEANS else KMeansEngine.SKLEARN
        return Clustering(method, used, 1 << bits, sample, seed)

    found: list[Coding] = [
        PaletteCoding(f"{bits}-bit colours", how(Method.KMEANS, bits), BLOCKS[Vectors.COLOURS])
        for bits in (8, 6, 4, 2)
    ]
    found += [
        PaletteCoding(f"8-bit {name}", how(Method.KMEANS, 8), BLOCKS[vectors])
        for vectors, name in ((Vectors.PATCHES, "patches 4x4"), (Vectors.BLOCKS, "blocks 2x2x2"))
    ]
    for scope, groups in (
        ("cluster of clips", math.ceil(clips / _CLIPS_PER_PALETTE)),
        ("shard", 1),
    ):
        for bits, vectors in ((6, Vectors.COLOURS), (8, Vectors.BLOCKS)):
            clustering, block = how(Method.KMEANS, bits), BLOCKS[vectors]
            name = f"{bits}-bit {vectors}, palette per {scope}"
            found.append(PaletteCoding(name, clustering, block, groups))
    found += [
        PaletteCoding(f"6-bit colours, {method}", how(method, 6), BLOCKS[Vectors.COLOURS])
        for method in (Method.GMM, Method.AGGLOMERATIVE, Method.DBSCAN)
    ]
    return [*found, JpegCoding(75), JpegCoding(90), H264Coding()]


def page(rows: Sequence[MeasuredCoding], facts: dict[str, Any]) -> list[str]:
    """The table as Markdown."""
    shapes = sorted({"x".join(map(str, shape)) for shape in facts["shapes"]})
    percent = round(100 * KEPT)
    lines = [
        f"{counted(len(facts['clips']), 'clip')} of {', '.join(shapes)} values. Factor: bytes of "
        "the pixels / bytes of the coding (with zlib: after zlib, which decoding has to undo). "
        f"Times: CPU milliseconds of a clip on one thread, medians of {ROUNDS} rounds in which all "
        f"codings take turns; {facts['sample']:,} vectors are clustered. Palettes that clips share "
        "are found once; encoding has each clip's part of that time.",
        "",
        *(
            f"Not measured: {printable(skip['sample'], lines=False)}: {skip['message']}\n"
            for skip in facts["refused"]
        ),
        f"| coding | factor | with zlib | PSNR, dB | encode | decode all | decode {percent} % of "
        "the tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = (row.encode_s, row.decode_s, row.kept_s)
        psnr = "no error" if math.isinf(row.psnr) else f"{row.psnr:.1f}"
        lines.append(
            f"| {row.name} | {row.factor:.1f} | {row.values / row.zlib_bytes:.1f} | {psnr} | "
            + " | ".join(_ms(seconds) for seconds in times)
            + " |"
        )
    lines += [
        "",
        "The look-ups alone, of codes that are in memory: all tokens and then the kept ones taken, "
        "or the kept ones alone. Both give the same bytes.",
        "",
        f"| coding | all, then {percent} % taken | {percent} % alone | ratio, lowest to highest |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row.gather_s is not None and row.gather_kept_s is not None:
            ratios = f"{np.median(row.ratios):.1f} ({min(row.ratios):.1f} to {max(row.ratios):.1f})"
            lines.append(
                f"| {row.name} | {_ms(row.gather_s)} | {_ms(row.gather_kept_s)} | {ratios} |"
            )
    return [*lines, "", f"<!-- Written by `{_SIGN}`. -->"]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"


def draw(
    rows: Sequence[MeasuredCoding], clips: Sequence[DecodedClip], names: Sequence[str], path: Path
) -> None:
    """A frame of each of some clips, as it was and as every coding shows it (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    shown = min(_SHOWN, len(clips))
    pictures = [("original", [c.frames[len(c.frames) // 2] for c in clips])]
    for row in rows:
        name = row.name.replace(", palette", "\n  palette")  # beside the pictures
        title = f"{name}\n{row.factor:.1f} times smaller\n{row.psnr:.1f} dB"
        pictures.append((title, row.frames))
    columns = 2
    lines = math.ceil(len(pictures) / columns)
    wide = _NAME_INCHES + shown * _CELL_INCHES
    width, height = columns * wide, lines * _CELL_INCHES
    figure = Figure(figsize=(width, height), dpi=100)
    for number, (title, frames) in enumerate(pictures):
        column, line = divmod(number, lines)
        left, bottom = column * wide / width, 1 - (line + 1) / lines
        figure.text(
            left + 0.004, bottom + 0.9 / lines, title, fontsize=9, va="top", parse_math=False
        )
        for place, frame in enumerate(frames[:shown]):
            start = left + (_NAME_INCHES + place * _CELL_INCHES) / width
            axes = figure.add_axes(
                (start, bottom + 0.01 / lines, 0.98 * _CELL_INCHES / width, 0.98 / lines)
            )
            axes.imshow(frame, interpolation="nearest")
            axes.axis("off")
    figure.savefig(path, metadata={"Software": _SIGN, "Title": ", ".join(names)})
