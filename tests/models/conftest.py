"""Small encoders and clips for the tests of the models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
from svilm_fast.models.dual_encoder import DualEncoder

VIDEO: dict[str, Any] = {
    "frames": 4,
    "image_size": 16,
    "tubelet": 1,
    "patch": 4,
    "width": 24,
    "depth": 3,
    "heads": 3,
    "num_groups": 4,
    "num_segments": 2,
}
TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "length": 12,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "pool": "mean",
}
BATCH = 4


def _random_weights(module: torch.nn.Module) -> None:
    """Larger weights than at the start of training, so that differences show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.fixture
def make_encoder() -> Callable[..., DualEncoder]:
    def make(groups: bool = True, text: dict[str, Any] | None = None, **video: Any) -> DualEncoder:
        torch.manual_seed(0)
        encoder = DualEncoder(
            ModelConfig(embed_dim=8, attention="sdpa"),
            VideoConfig(**VIDEO | video),
            TextConfig(**TEXT | (text or {})),
            groups=groups,
        )
        _random_weights(encoder)
        return encoder.double()

    return make


@pytest.fixture
def frames() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (BATCH, 4, 16, 16, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def seeds() -> StepSeeds:
    return StepSeeds(run_seed=3, step=5, keys=torch.tensor([11, 7, 2**40 + 1, 9]))


@pytest.fixture
def text() -> tuple[Tensor, Tensor]:
    """Tokens and mask of sequences of 3, 10, 1 and 6 real tokens."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 50, (BATCH, 10), generator=generator)
    return tokens, torch.arange(10) < torch.tensor([3, 10, 1, 6])[:, None]
