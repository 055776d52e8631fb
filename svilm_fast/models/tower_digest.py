"""The identity of a video tower: what its embedding of a clip is computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from svilm_fast.models.video_encoder import VideoEncoder

# Settings that change no embedding of an evaluated clip.
_OTHERS = {
    "drop_path",
    "dropout",
    "drop",
    "checkpoint_activations",
    "lock",
    "num_segments",
    "unit_segments",
    "unit_groups",
    "num_groups",  # of the tensors, if the encoder has group tokens
    "grouping",
}


def video_tower_digest(tower: VideoEncoder) -> str:
    """SHA-256 of a video tower's weights and settings; equal towers embed equally.

    Settings of training alone (dropout, token dropping, lock) do not count.
    """
    settings: dict[str, Any] = tower.config.model_dump(mode="json", exclude=_OTHERS)
    if tower.num_groups:
        grouping = tower.config.grouping
        settings["grouping"] = ["soft" if grouping.mode == "soft" else "hard", grouping.temperature]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    add_tensors(digest, tower.state_dict())
    return digest.hexdigest()


def add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add names, dtypes, shapes and values to a digest of hashlib."""
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
