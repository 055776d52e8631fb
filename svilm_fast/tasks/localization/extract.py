"""Features of long videos: each is decoded once, and overlapping clips share its frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.errors import UserError
from svilm_fast.core.files import write_atomically, write_json
from svilm_fast.data import files
from svilm_fast.data.augment import centre_window, cut
from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.containers import VIDEO_EXTENSIONS
from svilm_fast.data.decode_process import stream_limited
from svilm_fast.data.errors import DataError, VideoError
from svilm_fast.data.feature_files import (
    MANIFEST,
    ClipFeatures,
    FeatureFolder,
    FeatureLayout,
    VideoFeatureSequence,
    feature_path,
    parquet,
    parquet_bytes,
    read_parquet,
)
from svilm_fast.data.sampling import AtRate, choose_frames, duration_of
from svilm_fast.data.skips import Skip

FAILED = "failed.jsonl"
FORMAT = "svilm-features/1"
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExtractionSettings:
    """How videos become features.

    stride, clip: frames between two vectors, and frames that a vector sees, at `fps` frames a
    second (None: the video's own rate). frames: F that the encoder is given of each clip, evenly
    spaced. image_size, resize_margin: as in the encoder's evaluation. batch: clips per call.
    features: which output of the encoder a vector is, as it names them.
    """

    stride: int
    clip: int
    fps: float | None
    frames: int
    image_size: int
    resize_margin: float = 8 / 7
    batch: int = 16
    features: ClipFeatures = "embedding"

    def __post_init__(self) -> None:
        if min(self.stride, self.clip, self.batch) < 1 or (self.fps is not None and self.fps <= 0):
            raise UserError("stride, clip, batch and fps must be positive")

    def described(self) -> dict[str, Any]:
        """What the features depend on, besides the encoder."""
        return {
            "stride": self.stride,
            "clip": self.clip,
            "fps": self.fps,
            "frames": self.frames,
            "image_size": self.image_size,
            "resize_margin": self.resize_margin,
            "features": self.features,
        }


def video_files(sources: Sequence[Path]) -> dict[str, Path]:
    """Id and path of every video: of a folder its videos below it, by relative path; or a file.

    The id has no extension. Raises UserError for a missing path, no video, or an id that occurs
    twice.
    """
    found: dict[str, Path] = {}
    for source in sources:
        if source.is_dir():
            paths = sorted(
                path
                for path in source.rglob("*")
                if path.suffix.lower().lstrip(".") in _SUFFIXES and path.is_file()
            )
            named = [(path.relative_to(source).with_suffix("").as_posix(), path) for path in paths]
        elif source.is_file():
            named = [(source.stem, source)]
        else:
            raise UserError(f"{source}: there is no such video or folder")
        for name, path in named:
            if name in found:
                raise UserError(f"{path} and {found[name]} have the same id {name!r}: rename one")
            found[name] = path
    if not found:
        raise UserError(
            f"there is no video in {', '.join(map(str, sources))} "
            f"(extensions: {', '.join(sorted(_SUFFIXES))})"
        )
    return found


_SUFFIXES = {extension.lower().lstrip(".") for extension in VIDEO_EXTENSIONS}


def extract_sequence(
    video: str,
    path: Path,
    encode: Encode,
    settings: ExtractionSettings,
    limits: LimitsConfig | None = None,
) -> VideoFeatureSequence:
    """The features of one video file.

    Vector i sees the frames i * stride to i * stride + clip - 1; a rest shorter than that gives no
    vector, and a video shorter than one clip gives one, its last frame repeated. At most clip +
    (batch - 1) * stride frames are in memory.

    Args:
        encode: uint8 [b, F, size, size, 3] to float [b, C].

    Raises DataError for a file that cannot be read or decoded to its end.
    """
    limits = limits or LimitsConfig()
    with files.open_binary(str(path)) as stream:
        data = stream.read(limits.video_bytes + 1)
    side = max(settings.image_size, round(settings.image_size * settings.resize_margin))
    places = choose_frames(settings.clip, settings.frames, None)
    window = settings.clip + (settings.batch - 1) * settings.stride
    held: list[Tensor] = []  # frames from the first one of the next vector on
    skip = 0  # frames before it that are still to come (stride > clip)
    vectors: list[np.ndarray] = []

    def encoded(count: int) -> None:
        nonlocal skip
        clips = [
            torch.stack([held[place * settings.stride + int(f)] for f in places])
            for place in range(count)
        ]
        vectors.append(encode(torch.stack(clips)).float().cpu().numpy())
        passed = count * settings.stride
        skip = max(0, passed - len(held))
        del held[:passed]

    chunks = stream_limited(data, AtRate(settings.fps), short_side=side, limits=limits)
    try:
        while True:
            chunk = next(chunks)
            crop = centre_window(chunk.shape[2], chunk.shape[1], settings.resize_margin)
            for frame in cut(chunk, crop, settings.image_size):
                if skip:
                    skip -= 1
                    continue
                held.append(frame)
                if len(held) == window:
                    encoded(settings.batch)
    except StopIteration as end:
        clip = end.value
    finally:
        chunks.close()
    rest = (len(held) - settings.clip) // settings.stride + 1 if len(held) >= settings.clip else 0
    if rest:
        encoded(rest)
    elif not vectors:
        held.extend([held[-1]] * (settings.clip - len(held)))
        encoded(1)
    features = np.concatenate(vectors)
    if not np.isfinite(features).all():
        raise VideoError("the encoder's features of the video are not finite")
    duration = duration_of(clip.timeline)
    fps = settings.fps if settings.fps is not None else clip.timeline.total / duration
    layout = FeatureLayout(settings.stride, settings.clip, fps)
    return VideoFeatureSequence(video, features, layout, duration)


@dataclass(frozen=True)
class ExtractionReport:
    """Counts of an extraction. failed: videos without features, with the reason."""

    written: int
    earlier: int
    failed: tuple[Skip, ...]


def extract_folder(
    videos: dict[str, Path],
    out: Path,
    encode: Encode,
    settings: ExtractionSettings,
    encoder: dict[str, Any],
    *,
    limits: LimitsConfig | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> ExtractionReport:
    """Write one feature file per video into `out`; videos that have theirs already are kept.

    Files appear under their names only when they are complete, so a stopped extraction continues
    where it was. Broken videos are listed in `failed.jsonl` and tried again in the next run.

    Args:
        encoder: what identifies the weights, written into `features.json`.
        advance: is told of each video.

    Raises UserError if the folder holds features of another encoder or other settings.
    """
    parquet()
    described = {"format": FORMAT, "encoder": encoder, "settings": settings.described()}
    _open_folder(out, described)
    written = earlier = 0
    failed: list[Skip] = []
    for video, path in videos.items():
        target = feature_path(out, video)
        if _is_whole(target):
            earlier += 1
        else:
            try:
                sequence = extract_sequence(video, path, encode, settings, limits)
                write_atomically(target, parquet_bytes(sequence))
                written += 1
            except (DataError, OSError) as error:
                problem = error if isinstance(error, DataError) else VideoError(str(error))
                failed.append(Skip.of(video, problem))
        advance(video)
    rows = [
        json.dumps({"video": skip.sample, "reason": skip.reason, "message": skip.message})
        for skip in failed
    ]
    if rows or (out / FAILED).exists():
        write_atomically(out / FAILED, "".join(f"{row}\n" for row in rows).encode())
    return ExtractionReport(written, earlier, tuple(failed))


def _open_folder(out: Path, described: dict[str, Any]) -> None:
    manifest = out / MANIFEST
    if manifest.is_file():
        earlier = FeatureFolder(out).manifest()
        earlier["settings"] = {"features": "embedding", **earlier.get("settings", {})}
        for part in ("format", "encoder", "settings"):
            if earlier.get(part) != json.loads(json.dumps(described[part])):
                raise UserError(
                    f"{out} holds features with another {part} ({json.dumps(earlier.get(part))}, "
                    f"now {json.dumps(described[part])}): give --out another folder"
                )
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no {MANIFEST}: give --out a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(manifest, described)


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        read_parquet(path)
    except DataError:
        return False
    return True


def written_features(folder: Path) -> Iterator[VideoFeatureSequence]:
    """The features of a folder, in the order of the file names."""
    for path in sorted(folder.glob("*.parquet")):
        yield read_parquet(path)
