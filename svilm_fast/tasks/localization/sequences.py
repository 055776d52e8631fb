"""Feature sequences of whole videos with their annotations, as the loader reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from svilm_fast.core.errors import ConfigError, UserError
from svilm_fast.core.philox import Site, derive_seeds, uniform
from svilm_fast.data.batch import SampleBatch
from svilm_fast.data.errors import MissingFileError
from svilm_fast.data.feature_files import (
    FeatureFileError,
    FeatureFolder,
    FeatureLayout,
    features_fingerprint,
)
from svilm_fast.data.formats.activitynet import AnnotatedVideo
from svilm_fast.data.keys import sample_key
from svilm_fast.data.skips import Skip, SkipReport
from svilm_fast.tasks.localization.settings import LocalizationSettings
from svilm_fast.tasks.localization.time_axis import TimeAxis, padded, resized

_CROPS = 8  # places that are tried for a crop
_NUMBERS = 1 + _CROPS


@dataclass
class SequenceBatch(SampleBatch):
    """b videos of up to T steps. Segments are in steps, [start, end], of each video."""

    features: Tensor  # float32 [b, T, C], zeros beyond a video's end
    mask: Tensor  # bool [b, T], where the video is
    keys: Tensor  # int64 [b]
    ids: list[str]
    segments: list[np.ndarray]  # float32 [n, 2] of each video
    labels: list[np.ndarray]  # int64 [n], numbers of the classes
    axes: list[TimeAxis]
    durations: list[float | None]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class SequenceSample:
    """One video; fields as in SequenceBatch, without padding."""

    index: int
    features: Tensor
    segments: np.ndarray
    labels: np.ndarray
    axis: TimeAxis
    duration: float | None
    notes: tuple[str, ...] = ()


class SequenceDataset:
    """The videos of a subset that have features; the others are listed in `report`.

    Args:
        folder: the features.
        videos: the annotated videos of the subset.
        classes: names of the classes; a label that is none of them is an error.
        train: drop videos without annotations, and crop at random.
        max_videos: look at the first videos of the subset only.
    """

    def __init__(
        self,
        settings: LocalizationSettings,
        split: str,
        folder: Path,
        videos: dict[str, AnnotatedVideo],
        classes: Sequence[str],
        *,
        train: bool,
        max_videos: int | None = None,
    ) -> None:
        self.settings, self.split, self.train = settings, split, train
        layout = settings.layout
        given = (layout.stride, layout.clip, layout.fps)
        if any(given) and not all(given):
            raise ConfigError("task.layout: set stride, clip and fps, or none of them")
        self.folder = FeatureFolder(
            folder,
            FeatureLayout(*given) if all(given) else None,  # type: ignore[arg-type]
        )
        number = {label: place for place, label in enumerate(classes)}
        self.report = SkipReport(seen=len(videos))
        self.videos: list[AnnotatedVideo] = []
        paths = []
        for video in islice(videos.values(), max_videos):
            path = self.folder.find(video.name)
            if path is None:
                error = MissingFileError(f"{folder}: there are no features of it")
                self.report.add(Skip.of(video.name, error))
            elif train and not video.segments:
                self.report.notes["training videos without annotations left out"] += 1
            else:
                unknown = [s.label for s in video.segments if s.label not in number]
                if unknown and train:
                    raise UserError(f"video {video.name!r}: label {unknown[0]!r} is no class")
                self.videos.append(video)
                paths.append(path)
        if not self.videos:
            raise UserError(
                f"data.{split}={folder}: has features of none of the {len(videos)} annotated "
                "videos; extract them with `svilm localize extract`"
            )
        self.missing = [skip.sample for skip in self.report.skipped.values()]
        self._check_width(self.videos[0])
        self.numbers = number
        self.fingerprint = features_fingerprint(folder, paths)
        self.contents = self.fingerprint
        self.keys = np.array([sample_key(video.name) for video in self.videos], dtype=np.int64)

    def _check_width(self, video: AnnotatedVideo) -> None:
        width = self.folder.read(video.name, video.duration).features.shape[1]
        if width != self.settings.width:
            raise ConfigError(
                f"task.width={self.settings.width}, and the features in {self.folder.path} have "
                f"{width} numbers a vector: set task.width={width}"
            )

    @property
    def ids(self) -> list[str]:
        """The videos' ids."""
        return [video.name for video in self.videos]

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def frame_shapes(self) -> list[tuple[int, ...]]:
        """No frames."""
        return []

    def shard_samples(self) -> np.ndarray:
        """One shard."""
        return np.array([len(self)])

    def draws(self, indices: Sequence[int], seed: int, epoch: int) -> list[np.ndarray]:
        """Numbers in [0, 1) of each video: functions of seed, epoch and key alone."""
        keys = torch.from_numpy(self.keys[list(indices)])
        seeds = derive_seeds(seed, epoch, keys, Site.AUGMENT)
        return list(uniform(seeds, torch.arange(_NUMBERS)).numpy())

    def clip(
        self, index: int, draw: np.ndarray | None, out: Sequence[Tensor] | None = None
    ) -> SequenceSample:
        """Load one video; `draw` None: all of it. Raises DataError."""
        settings, video = self.settings, self.videos[index]
        found = self.folder.read(video.name, video.duration)
        if found.features.shape[1] != settings.width:
            raise FeatureFileError(
                f"{video.name}: {found.features.shape[1]} numbers a vector, task.width is "
                f"{settings.width}"
            )
        steps = settings.length if settings.resize else None
        features = torch.from_numpy(found.features)
        axis = TimeAxis.of(found.layout, len(features), steps)
        features = features if steps is None else resized(features, steps)
        rows = [s for s in video.segments if s.label in self.numbers]
        seconds = np.array([s[:2] for s in rows], dtype=np.float64).reshape(-1, 2)
        segments = axis.steps(seconds).astype(np.float32)
        labels = np.array([self.numbers[s.label] for s in rows], dtype=np.int64)
        if draw is not None:
            features, segments, labels = self._cropped(features, segments, labels, draw)
        duration = found.duration if video.duration is None else video.duration
        return SequenceSample(index, features, segments, labels, axis, duration)

    def _cropped(
        self, features: Tensor, segments: np.ndarray, labels: np.ndarray, draw: np.ndarray
    ) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """A random part that holds at least one segment; the whole where no place has one."""
        total = len(features)
        low, high = (
            round(share * min(total, self.settings.length)) for share in self.settings.crop
        )
        steps = max(1, min(total, low + int(draw[0] * (high - low + 1))))
        if steps == total:
            return features, segments, labels
        for number in draw[1:]:
            first = int(number * (total - steps + 1))
            kept = np.clip(segments, first - 0.5, first + steps - 0.5)
            share = (kept[:, 1] - kept[:, 0]) / np.maximum(segments[:, 1] - segments[:, 0], 1e-6)
            left = share >= max(self.settings.truncation, 1e-6)
            if left.any():
                rows = features[first : first + steps]
                return rows, (kept[left] - first).astype(np.float32), labels[left]
        return features[: self.settings.length], *self._inside(segments, labels)

    def _inside(self, segments: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = np.clip(segments, None, self.settings.length - 0.5)
        left = kept[:, 1] > kept[:, 0]
        return kept[left].astype(np.float32), labels[left]

    def collate(
        self, clips: Sequence[SequenceSample], frames: Sequence[Tensor] | None = None
    ) -> SequenceBatch:
        """Pad to `length` steps; in evaluation to the longest, rounded up for the pyramid."""
        longest = max(len(clip.features) for clip in clips)
        unit = 2 ** (self.settings.actionformer.levels - 1)
        steps = self.settings.length if self.train else max(unit, -(-longest // unit) * unit)
        if self.settings.resize:
            steps = self.settings.length
        lengths = torch.tensor([len(clip.features) for clip in clips])
        return SequenceBatch(
            features=torch.stack([padded(clip.features, steps) for clip in clips]),
            mask=torch.arange(steps) < lengths[:, None],
            keys=torch.from_numpy(self.keys[[clip.index for clip in clips]]),
            ids=[self.videos[clip.index].name for clip in clips],
            segments=[clip.segments for clip in clips],
            labels=[clip.labels for clip in clips],
            axes=[clip.axis for clip in clips],
            durations=[clip.duration for clip in clips],
        )
