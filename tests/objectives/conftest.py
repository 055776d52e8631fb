"""A very small S-ViLM and inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.objectives.svilm import SViLM, build_model

SIZES: dict[str, dict[str, Any]] = {
    "model": {"preset": "tiny", "embed_dim": 8},
    "video": {
        "frames": 4,
        "image_size": 8,
        "tubelet": 1,
        "patch": 4,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "num_groups": 3,
        "num_segments": 4,
    },
    "text": {"vocab_size": 30, "length": 8, "width": 16, "depth": 1, "heads": 2},
}
BATCH, NOUNS = 6, 2


@pytest.fixture
def make_config() -> Callable[..., SViLMConfig]:
    def make(objectives: dict[str, Any] | None = None, **video: Any) -> SViLMConfig:
        blocks = SIZES | {"video": SIZES["video"] | video}
        return SViLMConfig(**blocks, objectives=objectives or {})

    return make


@pytest.fixture
def make_model(make_config) -> Callable[..., SViLM]:
    def make(objectives: dict[str, Any] | None = None, **video: Any) -> SViLM:
        torch.manual_seed(0)
        return build_model(make_config(objectives, **video))

    return make


@pytest.fixture
def inputs() -> ModelInputs:
    """Six samples: caption 1 has no noun, the others one or two."""
    generator = torch.Generator().manual_seed(4)

    def draw(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=dtype)

    lengths = torch.tensor([7, 3, 5, 4, 6, 2])
    return ModelInputs(
        text_tokens=draw(30, BATCH, 7),
        text_mask=torch.arange(7) < lengths[:, None],
        frames=draw(256, BATCH, 4, 8, 8, 3, dtype=torch.uint8),
        blended=draw(256, BATCH, 4, 8, 8, 3, dtype=torch.uint8),
        paste_mask=torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 1]] * 2).bool(),
        pair_ids=torch.tensor([0, 1, 0, 2, 1, 2]),
        noun_tokens=draw(30, BATCH, NOUNS, 4),
        noun_token_mask=torch.ones(BATCH, NOUNS, 4, dtype=torch.bool),
        noun_mask=torch.tensor([[1, 1], [0, 0], [1, 0], [1, 1], [1, 0], [1, 1]]).bool(),
        seeds=StepSeeds(run_seed=1, step=2, keys=torch.tensor([3, 2**50, 8, 21, 5, 77])),
    )


@pytest.fixture
def take_rows() -> Callable[[ModelInputs, slice], ModelInputs]:
    def take(inputs: ModelInputs, rows: slice) -> ModelInputs:
        values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
        seeds = values.pop("seeds")
        return ModelInputs(
            **{name: None if found is None else found[rows] for name, found in values.items()},
            seeds=StepSeeds(seeds.run_seed, seeds.step, seeds.keys[rows]),
        )

    return take
