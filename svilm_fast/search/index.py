"""The index of a folder of videos: embeddings of windows, kept in one file and updated in parts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from svilm_fast.core.errors import UserError
from svilm_fast.core.files import write_atomically
from svilm_fast.core.messages import single_line
from svilm_fast.data.containers import VIDEO_EXTENSIONS
from svilm_fast.data.errors import CrashedDecoderError, DataError, SlowVideoError
from svilm_fast.data.segments import Segment
from svilm_fast.inference.model import PretrainedModel
from svilm_fast.search.windows import read_timeline, read_windows, video_seconds, windows_of

log = logging.getLogger(__name__)

FORMAT = "svilm_fast.search/1"
KEY, TABLE = "svilm_fast", "embeddings"
SAVE_SECONDS = 30.0
# A busy machine may cause these; the file is tried again next time.
_PASSING = (SlowVideoError, CrashedDecoderError)


@dataclass
class IndexedVideo:
    """A video file of the folder.

    size, mtime_ns, sha256: of the file that was read. seconds: its length, 0 if unknown. windows:
    start and end in seconds. error: why it is skipped; it has no windows then.
    """

    size: int
    mtime_ns: int
    sha256: str
    seconds: float = 0.0
    windows: list[Segment] = field(default_factory=list)
    error: str | None = None


@dataclass
class VideoIndex:
    """The windows of a folder's videos. rows: float32 [n, D] by video, of unit norm."""

    folder: Path
    videos: dict[str, IndexedVideo]
    rows: dict[str, Tensor]

    @property
    def skipped(self) -> dict[str, str]:
        """The files that cannot be used, with reasons."""
        return {name: each.error for name, each in self.videos.items() if each.error is not None}

    def table(self) -> tuple[Tensor, list[tuple[str, Segment]]]:
        """Return all embeddings [n, D], and video and window of each row."""
        places = [(name, window) for name, video in self.videos.items() for window in video.windows]
        parts = [self.rows[name] for name, video in self.videos.items() if video.windows]
        return torch.cat(parts) if parts else torch.empty(0, 0), places


@dataclass(frozen=True)
class IndexSettings:
    """What the embeddings of an index depend on besides the videos; lengths in seconds."""

    model: str
    window: float
    stride: float


@dataclass
class IndexChanges:
    """What an update did, as numbers of video files."""

    added: int = 0
    unchanged: int = 0
    removed: int = 0


def default_index_path(folder: Path, settings: IndexSettings) -> Path:
    """Return a file in the user's cache; every folder and every settings have their own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    what = json.dumps([str(folder.resolve()), asdict(settings)])
    name = hashlib.sha256(what.encode()).hexdigest()[:24]
    return cache / "svilm-fast" / "search" / f"{name}.safetensors"


def find_videos(folder: Path) -> dict[str, Path]:
    """Return the video files under a folder by relative name, sorted.

    Links to folders are not followed. A subfolder that cannot be listed is logged.

    Raises UserError if it is no folder, or has no video files.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of video files with --videos")
    found = {}
    for place, folders, names in os.walk(folder, onerror=_unlisted):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower().lstrip(".") in VIDEO_EXTENSIONS and path.is_file():
                found[path.relative_to(folder).as_posix()] = path
    if not found:
        kinds = ", ".join(VIDEO_EXTENSIONS[:6])
        raise UserError(f"{folder} holds no video files ({kinds}, ...)")
    return found


def _unlisted(error: OSError) -> None:
    log.warning("its videos are not searched: %s", single_line(error))


def update_index(
    folder: Path,
    model: PretrainedModel,
    file: Path | None = None,
    *,
    window: float = 5.0,
    stride: float = 2.5,
    batch_size: int = 16,
    rebuild: bool = False,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> tuple[VideoIndex, IndexChanges]:
    """Bring the index of a folder up to date, and return it with what was done.

    Only new and changed videos are read: a video is unchanged if its size and time of modification
    are, or its content. The file is written while work goes on, so that stopped work continues.

    Args:
        file: of the index; None: `default_index_path`.
        window, stride: length of a window, and distance between the starts of two, in seconds.
        batch_size: windows per call of the encoder.
        rebuild: read every video again.
        progress: called with a name, the videos done and their number.

    Raises UserError for a folder without videos, and for a file that is no index of this folder,
    model and window.
    """
    paths = find_videos(folder)
    settings = IndexSettings(model.fingerprint(), window, stride)
    file = default_index_path(folder, settings) if file is None else file
    _check_writable(file)
    before = _read(file, folder, settings)
    index = VideoIndex(folder, {}, {})
    changes = IndexChanges(removed=len(before.videos.keys() - paths.keys()))
    saved, last = before.videos, time.monotonic()
    try:
        for done, (name, path) in enumerate(paths.items()):
            progress(name, done, len(paths))
            known = None if rebuild else before.videos.get(name)
            video, rows, kept = _indexed(path, model, settings, batch_size, known)
            index.videos[name] = video
            if rows is None and video.windows:
                rows = before.rows[name]
            if rows is not None:
                index.rows[name] = rows
            changes.unchanged += kept
            changes.added += not kept
            if time.monotonic() - last > SAVE_SECONDS:
                _write(file, _merged(index, before, paths), settings)
                last = time.monotonic()
        progress("", len(paths), len(paths))
    finally:
        whole = _merged(index, before, paths)
        if whole.videos != saved or not file.is_file():
            _write(file, whole, settings)
    return index, changes


def _check_writable(file: Path) -> None:
    """Raise UserError now, not when every video has been read."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(file.parent, os.W_OK | os.X_OK) else "its folder is read-only"
        if file.exists() and not file.is_file():
            problem = "it is no file"
    except OSError as error:
        problem = single_line(error)
    if problem:
        raise UserError(
            f"the index cannot be written to {file} ({problem}): name a file with --index"
        )


def _merged(index: VideoIndex, before: VideoIndex, paths: dict[str, Path]) -> VideoIndex:
    """The index so far, and what the earlier one knows of the files that come later."""
    later = [name for name in before.videos if name in paths and name not in index.videos]
    rows = {name: before.rows[name] for name in later if name in before.rows}
    videos = {name: before.videos[name] for name in later}
    return VideoIndex(index.folder, index.videos | videos, index.rows | rows)


def _indexed(
    path: Path,
    model: PretrainedModel,
    settings: IndexSettings,
    batch_size: int,
    known: IndexedVideo | None,
) -> tuple[IndexedVideo, Tensor | None, bool]:
    """The video, its embeddings (None: those that are known), and whether it is unchanged."""
    try:
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        if known is not None and (known.size, known.mtime_ns) == stamp and known.sha256:
            return known, None, True
        limit = model.settings.reading.limits.video_bytes
        if status.st_size > limit:
            return IndexedVideo(*stamp, "", error=f"larger than {limit} bytes"), None, False
        data = path.read_bytes()
    except OSError as error:
        return IndexedVideo(0, 0, "", error=single_line(error)), None, False
    digest = hashlib.sha256(data).hexdigest()
    if known is not None and known.sha256 == digest:
        return replace(known, size=stamp[0], mtime_ns=stamp[1]), None, True
    try:
        seconds = video_seconds(read_timeline(data, model.settings))
        windows = windows_of(seconds, settings.window, settings.stride)
        rows = torch.cat(
            [
                model.embed_clips(batch)
                for clips in read_windows(data, windows, seconds, model.settings)
                for batch in clips.split(batch_size)
            ]
        )
    except _PASSING as error:
        return IndexedVideo(*stamp, "", error=single_line(error)), None, False
    except DataError as error:
        return IndexedVideo(*stamp, digest, error=single_line(error)), None, False
    return IndexedVideo(*stamp, digest, seconds, windows), rows, False


def _write(file: Path, index: VideoIndex, settings: IndexSettings) -> None:
    table, _ = index.table()
    content = {
        "format": FORMAT,
        "settings": asdict(settings),
        "folder": str(index.folder.resolve()),
        "videos": {name: asdict(video) for name, video in index.videos.items()},
    }
    write_atomically(file, save({TABLE: table.contiguous()}, {KEY: json.dumps(content)}))


def _read(file: Path, folder: Path, settings: IndexSettings) -> VideoIndex:
    if not file.is_file():
        return VideoIndex(folder, {}, {})
    try:
        with safe_open(file, framework="pt") as opened:
            content = json.loads((opened.metadata() or {})[KEY])
            table = opened.get_tensor(TABLE)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        index = _from_json(folder, content, table)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not an index of `svilm search` ({type(error).__name__}: "
            f"{single_line(error)}); remove it, or name another file with --index"
        ) from error
    found = {"settings": content["settings"], "folder": content["folder"]}
    wanted = {"settings": asdict(settings), "folder": str(folder.resolve())}
    if found != wanted:
        raise UserError(
            f"{file} is the index of another folder, model, window or stride; name another file "
            "with --index, or leave it out"
        )
    return index


def _from_json(folder: Path, content: dict[str, Any], table: Tensor) -> VideoIndex:
    videos, rows, first = {}, {}, 0
    for name, values in content["videos"].items():
        windows = [(float(start), float(end)) for start, end in values.pop("windows")]
        videos[name] = IndexedVideo(**values, windows=windows)
        if windows:
            rows[name] = table[first : first + len(windows)].clone()
            first += len(windows)
    if first != len(table):
        raise ValueError(f"{first} windows and {len(table)} embeddings")
    return VideoIndex(folder, videos, rows)
