"""Tiny real videos, shards and datasets for the data tests."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.loader import build_loader
from svilm_fast.data.shards import ShardWriter

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star")


def encode_video(frames: np.ndarray, *, fps: int = 8, **options: str) -> bytes:
    """H.264 MP4 bytes of uint8 [F, h, w, 3] frames; `options` go to the container."""
    # a real file: the option movflags=faststart reads it again
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w", format="mp4", options=options) as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height = frames.shape[2], frames.shape[1]
            stream.pix_fmt, stream.thread_count = "yuv420p", 1
            stream.options = {"crf": "10", "preset": "ultrafast"}
            for image in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        return Path(file.name).read_bytes()


def ramp(frames: int = 12, height: int = 32, width: int = 40, phase: int = 0) -> np.ndarray:
    """Frames whose brightness tells their number: frame f is grey 16 * f + phase."""
    levels = (16 * np.arange(frames) + phase) % 256
    return np.broadcast_to(
        levels.astype(np.uint8)[:, None, None, None], (frames, height, width, 3)
    ).copy()


def across_ranks(
    dataset: ClipDataset,
    batch_size: int,
    world_size: int,
    count: int,
    state: dict[str, Any] | None = None,
) -> tuple[list[list[tuple[int, ClipBatch]]], list[dict[str, Any]]]:
    """The first global batches, each as (epoch, batch) of every rank, and the loaders' states."""
    found: list[list[tuple[int, ClipBatch]]] = [[] for _ in range(count)]
    states = []
    for rank in range(world_size):
        loader = build_loader(
            dataset.config,
            dataset,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            state=state,
        )
        for number, batch in zip(range(count), loader.forever()):
            found[number].append((loader.epoch, batch))
            states.append(loader.state_dict())
        loader.close()
    return found, states


@pytest.fixture(scope="session")
def batches_of_ranks() -> Callable[..., Any]:
    return across_ranks


def caption_of(number: int) -> str:
    colour, shape = COLOURS[number % 6], SHAPES[number // 6 % 4]
    return f"clip {number}: a {colour} {shape} spins over a dark floor."


@pytest.fixture(scope="session")
def odd() -> ModuleType:
    """The functions of odd_videos.py beside this file."""
    path = Path(__file__).with_name("odd_videos.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_video() -> Callable[..., bytes]:
    return encode_video


@pytest.fixture(scope="session")
def make_ramp() -> Callable[..., np.ndarray]:
    return ramp


@pytest.fixture(scope="session")
def videos() -> list[bytes]:
    """Four different 12-frame videos of 40 x 32 pixels."""
    return [encode_video(ramp(phase=phase)) for phase in (0, 3, 6, 9)]


@pytest.fixture
def make_shards(videos: list[bytes], tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` samples into shards of five; `replace` maps a number to other members."""

    def write(
        count: int = 23, *, replace: dict[int, dict[str, bytes]] | None = None, name: str = "train"
    ) -> Path:
        folder = tmp_path / name
        # A test may write its split again; the writer replaces nothing.
        shutil.rmtree(folder, ignore_errors=True)
        with ShardWriter(folder, max_samples=5) as writer:
            for number in range(count):
                members = {
                    "mp4": videos[number % 4],
                    "json": json.dumps({"caption": caption_of(number)}).encode(),
                }
                writer.write(f"s{number:04d}", {**members, **(replace or {}).get(number, {})})
        return folder

    return write


@pytest.fixture
def make_dataset(make_shards: Callable[..., Path]) -> Callable[..., ClipDataset]:
    """A dataset over fresh shards; keywords are data settings."""

    def build(
        count: int = 23,
        *,
        train: bool = True,
        replace: dict[int, dict[str, bytes]] | None = None,
        frames: int = 4,
        image_size: int = 24,
        **settings: Any,
    ) -> ClipDataset:
        folder = make_shards(count, replace=replace)
        config = DataConfig(train=str(folder), **{"workers": 0, **settings})
        return ClipDataset(
            config,
            "train",
            prepare_tokenizer(config),
            train,
            frames=frames,
            image_size=image_size,
        )

    return build
