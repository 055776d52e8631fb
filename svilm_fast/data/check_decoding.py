"""`svilm data check-decoding`: decoding by groups of pictures against decoding everything."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import track
from rich.table import Table

from svilm_fast.core.terminal import printable
from svilm_fast.core.text import counted
from svilm_fast.data import containers
from svilm_fast.data.config import LimitsConfig, build_data_config
from svilm_fast.data.decode import Choose, DecodedClip
from svilm_fast.data.decode_process import decode_limited, end_idle_processes
from svilm_fast.data.demux import Budget, open_video
from svilm_fast.data.errors import DataError
from svilm_fast.data.files import read_bytes
from svilm_fast.data.samples import open_split
from svilm_fast.data.sampling import DrawnFrames, FirstAndLast, FrameChoice, WithoutGroups

_FRAMES = 8  # of a choice


@dataclass
class CheckedVideo:
    """What two ways of decoding one video gave, over all choices."""

    name: str
    codec: str = "-"
    by_groups: int = 0  # choices
    fallbacks: Counter[str] = field(default_factory=Counter)  # choices by reason
    differences: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # of both ways
    unnoticed: list[str] = field(default_factory=list)  # damage where groups were left out


def choices(draws: int) -> list[Choose]:
    """An evaluation's frames, the first and the last, and `draws` random choices."""
    return [
        FrameChoice(_FRAMES, None),
        FirstAndLast(),
        *(DrawnFrames(_FRAMES, seed) for seed in range(draws)),
    ]


def check_video(name: str, data: bytes, limits: LimitsConfig, draws: int) -> CheckedVideo:
    """Decode every choice in both ways, in a limited process, and compare."""
    found = CheckedVideo(name)
    for choice in choices(draws):
        ours, error = _decoded(data, choice, limits)
        whole, other = _decoded(data, WithoutGroups(choice), limits)
        if ours is not None and whole is not None:
            found.differences += differences(ours, whole)
            found.fallbacks.update([ours.fallback] if ours.fallback else [])
            found.by_groups += ours.fallback is None
        elif ours is not None:
            found.unnoticed.append(other)
        elif whole is not None or error != other:
            found.differences.append(f"error {error!r} against {other or 'frames'!r}")
        else:
            found.errors.append(error)
    if found.by_groups or found.fallbacks:
        found.codec = _codec(data, limits)
    return found


def differences(ours: DecodedClip, whole: DecodedClip) -> list[str]:
    """What differs between two results of one choice."""
    found = []
    if not np.array_equal(ours.index, whole.index):
        found.append(f"places {ours.index.tolist()} against {whole.index.tolist()}")
    elif not np.array_equal(ours.frames, whole.frames):
        places = [
            place
            for place, a, b in zip(ours.index.tolist(), ours.frames, whole.frames)
            if not np.array_equal(a, b)
        ]
        found.append(f"pixels of frames {places}")
    if (ours.total, ours.fps, ours.source_size) != (whole.total, whole.fps, whole.source_size):
        found.append("number of frames, rate or size")
    return found


def _decoded(data: bytes, choice: Choose, limits: LimitsConfig) -> tuple[DecodedClip | None, str]:
    try:
        return decode_limited(data, choice, limits=limits), ""
    except DataError as error:
        return None, f"{error.reason}: {error}"


def _codec(data: bytes, limits: LimitsConfig) -> str:
    container = containers.sniff(data)
    assert container is not None
    with open_video(data, container, Budget(limits, None)) as video:
        return str(video.context.name)


def videos_of(source: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Name and reader of every video of a folder, a file, shards or a list. Raises DataError."""
    path, limits = Path(source), LimitsConfig()
    endings = containers.VIDEO_EXTENSIONS
    found = [path] if path.is_file() and path.suffix.lstrip(".").lower() in endings else []
    if path.is_dir() and not any(path.glob("*.tar")):
        inside = (Path(place) / name for place, _, names in os.walk(path) for name in names)
        found = sorted(file for file in inside if file.suffix.lstrip(".").lower() in endings)
        if not found:
            raise DataError(f"{source} holds no videos: give a folder of videos, shards or a list")
    if found:
        for file in found:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            yield name, partial(read_bytes, str(file), limits.video_bytes)
        return
    table = open_split(build_data_config(train=source, captions="none"), "train", nouns=False)
    for place in range(len(table)):
        yield table.id(place), partial(table.read_video, place)


def check_sources(sources: list[str], draws: int) -> list[CheckedVideo]:
    """Check all videos; one that cannot be read becomes an error of its own."""
    limits, found = LimitsConfig(), []
    videos = [video for source in sources for video in videos_of(source)]
    try:
        for name, read in track(videos, description="decoding", transient=True):
            try:
                data = read()
            except DataError as error:
                found.append(CheckedVideo(name, errors=[f"{error.reason}: {error}"]))
                continue
            found.append(check_video(name, data, limits, draws))
    finally:
        end_idle_processes()
    return found


def table_of(checked: list[CheckedVideo], draws: int) -> Table:
    """One row for each video."""
    table = Table("video", "codec", "by groups", "differences", "remarks", box=None)
    for each in checked:
        remarks = [f"decoded from the first frame: {reason}" for reason in each.fallbacks]
        remarks += [f"differs: {what}" for what in each.differences]
        remarks += [f"error in both ways: {what}" for what in dict.fromkeys(each.errors)]
        remarks += [f"damage where groups are left out: {w}" for w in dict.fromkeys(each.unnoticed)]
        cells = f"{each.by_groups} of {len(choices(draws))}", str(len(each.differences))
        table.add_row(printable(each.name), each.codec, *cells, printable("; ".join(remarks)))
    return table


def summary(checked: list[CheckedVideo]) -> str:
    """Counts over all videos."""
    grouped = sum(each.by_groups > 0 for each in checked)
    fallen = sum(bool(each.fallbacks) for each in checked)
    broken = sum(bool(each.errors) for each in checked)
    wrong = sum(bool(each.differences) for each in checked)
    return (
        f"{counted(len(checked), 'video')}: {grouped} decoded by groups, {fallen} from the first "
        f"frame, {broken} with errors (the same in both ways), {wrong} with differences"
    )
