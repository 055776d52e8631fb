"""A small list of real videos of the embedded world, and a model that sees mean colours."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.world import generate_clip
from svilm_fast.data.world.video import encode_mp4

COUNT = 9


@pytest.fixture(scope="session")
def world_videos() -> list[tuple[bytes, dict[str, Any]]]:
    """Nine 32-pixel clips of 8 frames: MP4 bytes and sample."""
    clips = [generate_clip(seed, "test", size=32, frames=8) for seed in range(COUNT)]
    return [(encode_mp4(frames, 8.0), sample) for frames, sample in clips]


@pytest.fixture
def make_dataset(
    world_videos: list[tuple[bytes, dict[str, Any]]], tmp_path: Path
) -> Callable[..., ClipDataset]:
    """A data set from a 1k-A style CSV; `captions` per video.

    `broken` videos are cut short, `gone` ones are listed only.
    """

    def make(
        captions: int = 1,
        broken: tuple[int, ...] = (),
        gone: tuple[int, ...] = (),
        count: int = COUNT,
        **settings: Any,
    ) -> ClipDataset:
        rows = []
        for number, (video, sample) in enumerate(world_videos[:count]):
            name = f"video{number:04d}"
            content = video[: len(video) // 3] if number in broken else video
            if number not in gone:
                (tmp_path / f"{name}.mp4").write_bytes(content)
            for turn in range(captions):
                text = sample["captions"]["fused"] + " again" * turn
                rows.append((f"ret{len(rows)}", f"msr{number}", name, text))
        path = tmp_path / "list.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("key", "vid_key", "video_id", "sentence"), *rows])
        config = DataConfig(
            train=str(path),
            test=str(path),
            videos=str(tmp_path),
            workers=0,
            nouns={"extractor": "none"},
            **{"tokenizer": {"vocab_size": 300}, **settings},
        )
        tokenizer = prepare_tokenizer(config)
        return ClipDataset(config, "test", tokenizer, train=False, frames=4, image_size=32)

    return make


class ColourModel(torch.nn.Module):
    """Video: mean colour of its frames. Text: a fixed random direction for each token sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.video_calls: list[tuple[int, bool]] = []
        self.text_rows = 0

    def encode_video(self, frames: Tensor, seeds: Any = None, outputs: Any = None) -> Any:
        self.video_calls.append((len(frames), self.training))
        mean = frames.double().mean(dim=(1, 2, 3)) - 100
        return SimpleNamespace(video=torch.nn.functional.normalize(mean, dim=1).float())

    def encode_text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        self.text_rows += len(tokens)
        weights = torch.arange(1, tokens.shape[1] + 1).double()
        number = (tokens * mask * weights).sum(1, keepdim=True)
        waves = torch.cat([torch.sin(number), torch.sin(2.1 * number), torch.cos(number)], dim=1)
        return torch.nn.functional.normalize(waves, dim=1).float()


@pytest.fixture
def colour_model() -> ColourModel:
    return ColourModel()
