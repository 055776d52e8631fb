"""Our encoders in the size of the models of `image_models`, and still clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.pretrained.config import WeightsConfig
from svilm_fast.models.pretrained.load import load_pretrained_towers
from svilm_fast.models.pretrained.report import TowerReport
from svilm_fast.models.tubelet_embedding import PIXELS
from tests.models.pretrained import image_models as sizes

VIDEO: dict[str, Any] = {
    "frames": 6,
    "image_size": sizes.SIDE * sizes.PATCH,
    "tubelet": 2,
    "patch": sizes.PATCH,
    "width": sizes.WIDTH,
    "depth": sizes.DEPTH,
    "heads": sizes.HEADS,
    "num_groups": 4,
    "num_segments": 3,
    "pool": "class_token",
    "class_tokens": 3,
}
TEXT: dict[str, Any] = {
    "vocab_size": sizes.VOCABULARY,
    "length": sizes.LENGTH,
    "width": sizes.WIDTH,
    "depth": sizes.DEPTH,
    "heads": sizes.HEADS,
}
CLIP: dict[str, Any] = {"pre_norm": True, "activation": "quick_gelu", "pixels": "clip"}
CLIP_TEXT: dict[str, Any] = {"causal": True, "pool": "end", "activation": "quick_gelu"}
BERT: dict[str, Any] = {"post_norm": True, "embedding_norm": True, "norm_eps": 1e-12}


def encoder(
    video: dict[str, Any] | None = None, text: dict[str, Any] | None = None, *, groups: bool = False
) -> DualEncoder:
    torch.manual_seed(3)
    return DualEncoder(
        ModelConfig(embed_dim=sizes.EMBED, attention="sdpa"),
        VideoConfig(**VIDEO | (video or {})),
        TextConfig(**TEXT | (text or {})),
        groups=groups,
    ).eval()


def load(encoder: DualEncoder, **paths: Path) -> list[TowerReport]:
    return load_pretrained_towers(encoder, WeightsConfig(**{k: str(v) for k, v in paths.items()}))


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def images(side: int = sizes.SIDE * sizes.PATCH) -> Tensor:
    """uint8 [3, side, side, 3]."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8, generator=generator)


def normalised(image: Tensor, pixels: str) -> Tensor:
    """What the image model reads: float32 [n, 3, side, side]."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in PIXELS[pixels])
    return ((image.double() / 255 - mean) / std).permute(0, 3, 1, 2).float()


def still(image: Tensor, frames: int = VIDEO["frames"]) -> Tensor:
    """uint8 [n, frames, side, side, 3], all frames the same."""
    return image[:, None].expand(-1, frames, -1, -1, -1)
