"""A folder of videos with broken files, and an exported model without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from svilm_fast.data.world.video import encode_mp4
from svilm_fast.inference.folder import load_pretrained
from svilm_fast.inference.model import PretrainedModel
from svilm_fast.train.run.export import export_run
from tests.untrained_run import make_untrained_run


def video(seconds: float, seed: int, size: tuple[int, int] = (40, 64)) -> bytes:
    """A video of 8 frames per second; every second has another flat colour with a bright square."""
    colours = np.random.default_rng(seed).integers(0, 256, (round(seconds) + 1, 3))
    frames = np.zeros((round(8 * seconds), *size, 3), np.uint8)
    for place, frame in enumerate(frames):
        frame[:] = colours[place // 8]
        frame[10:20, 20 + place % 10 : 30 + place % 10] = 255
    return encode_mp4(frames, 8.0)


@pytest.fixture(scope="package")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search-model")
    export_run(make_untrained_run(folder / "run", "data.resize_margin=1.2").root, folder / "model")
    return folder / "model"


@pytest.fixture(scope="package")
def model(exported) -> PretrainedModel:
    return load_pretrained(exported)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two videos of 4 and 1 seconds, a file that is no video, a truncated one, and a text."""
    videos = tmp_path / "videos"
    (videos / "sub").mkdir(parents=True)
    (videos / "long.mp4").write_bytes(video(4, 0))
    (videos / "sub" / "short #1.mp4").write_bytes(video(1, 1))
    (videos / "broken.mp4").write_text("this is no video")
    (videos / "cut.mp4").write_bytes(video(2, 2)[:900])
    (videos / "notes.txt").write_text("no video")
    return videos
