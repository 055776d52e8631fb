"""Feature sequences in which the actions are easy to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from svilm_fast.data.feature_files import (
    FeatureLayout,
    VideoFeatureSequence,
    feature_path,
    parquet_bytes,
)
from svilm_fast.data.formats.activitynet import (
    AnnotatedSegment,
    AnnotatedVideo,
    annotations_json,
)

LAYOUT = FeatureLayout(stride=4, clip=8, fps=8.0)
LABELS = ("jump", "run")
WIDTH = 8


class FeatureWorld(NamedTuple):
    """A folder of features and the annotations of its videos."""

    features: Path
    annotations: Path

    @property
    def overrides(self) -> list[str]:
        """Settings that name them."""
        return [
            f"data.train={self.features}",
            f"data.val={self.features}",
            f"data.test={self.features}",
            f"task.annotations={self.annotations}",
            f"task.width={WIDTH}",
        ]


def make_feature_world(root: Path, train: int, val: int, seed: int = 0) -> FeatureWorld:
    """Videos of about 60 vectors, two to four actions each; channel k shows action k."""
    pytest.importorskip("pyarrow")
    draw = np.random.default_rng(seed)
    folder = root / "features"
    folder.mkdir(parents=True)
    videos = {}
    for number in range(train + val):
        name = f"v{number:03d}"
        count = int(draw.integers(50, 70))
        duration = (count - 1) * 0.5 + 1.0
        features = 0.1 * draw.standard_normal((count, WIDTH))
        times = LAYOUT.centre(np.arange(count))
        segments, start = [], float(draw.uniform(0.5, 4))
        while start < duration - 6:
            end = start + float(draw.uniform(2.5, 6))
            label = int(draw.integers(len(LABELS)))
            features[(times >= start) & (times <= end), label] += 1.0
            segments.append(AnnotatedSegment(start, end, LABELS[label]))
            start = end + float(draw.uniform(2, 6))
        subset = "training" if number < train else "validation"
        videos[name] = AnnotatedVideo(name, subset, duration, tuple(segments))
        sequence = VideoFeatureSequence(name, features.astype(np.float32), LAYOUT, duration)
        feature_path(folder, name).write_bytes(parquet_bytes(sequence))
    path = root / "annotations.json"
    path.write_text(json.dumps(annotations_json(videos, "test")))
    return FeatureWorld(folder, path)


@pytest.fixture(scope="session")
def feature_world(tmp_path_factory) -> FeatureWorld:
    """Twelve training and six validation videos."""
    return make_feature_world(tmp_path_factory.mktemp("feature-world"), 12, 6)
