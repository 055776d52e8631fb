"""Made-up clips, results and logs whose pictures are known in advance."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from svilm_fast.evaluation import Embeddings, RetrievalResult, rank_embeddings
from svilm_fast.report.canvas import to_png
from svilm_fast.report.probe import BlendedProbe, ClipProbe

DPI = 100
UNCHANGED: Mapping[str, object] = MappingProxyType({})


@pytest.fixture(scope="session")
def pixels() -> Callable[[Figure], np.ndarray]:
    """Renders a figure at 100 pixels per inch: uint8 [h, w, 3]."""

    def render(figure: Figure) -> np.ndarray:
        image = matplotlib.image.imread(io.BytesIO(to_png(figure, dpi=DPI)))
        return np.round(255 * image[..., :3]).astype(np.uint8)

    return render


@pytest.fixture(scope="session")
def share_of() -> Callable[[np.ndarray, object], float]:
    """The share of an image's pixels that have a colour, to within 3 levels."""

    def share(image: np.ndarray, colour: object) -> float:
        off = np.abs(image.astype(int) - np.asarray(colour, dtype=int)).max(axis=-1)
        return float((off <= 3).mean())

    return share


@pytest.fixture
def make_probe() -> Callable[..., ClipProbe]:
    """A grey clip of 4 segments whose left half is group 0 and right half group 1 of 3."""

    def make(blended: Mapping[str, object] | None = UNCHANGED, **changes: object) -> ClipProbe:
        groups = np.zeros((4, 2, 2), int)
        groups[:, :, 1] = 1
        own = np.array([False, True, True, False])
        matrix = np.full((4, 4), 0.5)
        np.fill_diagonal(matrix, 1.0)
        values: dict[str, object] = {
            "caption": "a red ring spins",
            "frames": np.full((8, 32, 32, 3), 100, np.uint8),
            "groups": groups,
            "num_groups": 3,
            "nouns": ("red ring",),
            "noun_weights": np.array([[0.1, 0.7, 0.2]]),
            "clean": matrix,
        }
        if blended is not None:
            parts: dict[str, object] = {
                "frames": np.full((8, 32, 32, 3), 100, np.uint8),
                "own": own,
                "assignment": np.stack([own, ~own], axis=1).astype(float),
                "similarity": 0.9 * matrix,
            }
            values["blended"] = BlendedProbe(**{**parts, **blended})  # type: ignore[arg-type]
        return ClipProbe(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def make_result() -> Callable[..., RetrievalResult]:
    """`count` clips, clip i filled with grey 10 i; text i finds video i unless `swap` is set."""

    def make(count: int = 8, swap: bool = False, frames: bool = True) -> RetrievalResult:
        videos = torch.eye(count)
        texts = 0.9 * torch.eye(count) + 0.01 * torch.arange(count)
        owner = torch.arange(count)
        if swap:
            owner = torch.roll(owner, 1)
        grey = torch.arange(count, dtype=torch.uint8)[:, None, None, None, None] * 10
        return rank_embeddings(
            Embeddings(
                video_ids=[f"v{i}" for i in range(count)],
                captions=[f"caption number {i}" for i in range(count)],
                videos=videos,
                texts=texts,
                video_of_text=owner,
                metadata=[{"objects": [{"color": "red"}]} for _ in range(count)],
                frames=grey.expand(count, 3, 16, 16, 3).contiguous() if frames else None,
            ),
            resamples=50,
        )

    return make


@pytest.fixture(scope="session")
def metrics_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 60 steps."""
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 61):
            record = {
                "step": step,
                "loss": 5 / step,
                "loss_contrast": 3 / step,
                "accuracy_t2v": step / 60,
                "clips_per_second": 100.0 + step % 2,
                "seconds_per_step": 0.5,
                "model_tflops_per_second": 0.02,
            }
            file.write(json.dumps(record) + "\n")
        file.write(json.dumps({"step": 60, "retrieval/t2v_R@1": 25.0}) + "\n")
    return path
