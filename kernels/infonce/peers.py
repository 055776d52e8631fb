"""Symmetric InfoNCE in plain PyTorch, compiled, and from other packages."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peers import PeerMissing, Provider, compiled


def _expressible(inputs: dict[str, Any]) -> bool:
    square = inputs["videos"].shape == inputs["texts"].shape
    plain = not {"pair_ids", "workspace_bytes"} & inputs.keys()
    return square and plain and not inputs.get("diagonal_offset")


def _materialised(videos: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    logits = scale.to(videos.dtype) * videos @ texts.T
    labels = torch.arange(len(videos), device=videos.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


_compiled = compiled(_materialised)


def eager(**inputs: Any) -> Any:
    """The full matrix of logits and cross-entropy in both directions, as in CLIP's paper."""
    if not _expressible(inputs):
        return NotImplemented
    return _materialised(inputs["videos"], inputs["texts"], inputs["scale"])


def compile_(**inputs: Any) -> Any:
    """`eager` under `torch.compile`."""
    if not _expressible(inputs):
        return NotImplemented
    return _compiled(videos=inputs["videos"], texts=inputs["texts"], scale=inputs["scale"])


def inf_cl(**inputs: Any) -> Any:
    """Inf-CL's flash loss, once per direction."""
    if not _expressible(inputs) or not inputs["videos"].is_cuda:
        return NotImplemented
    if importlib.util.find_spec("inf_cl") is None:
        raise PeerMissing("inf_cl is not installed")
    loss = importlib.import_module("inf_cl").cal_flash_loss
    videos, texts, scale = inputs["videos"], inputs["texts"], inputs["scale"]
    head = next((size for size in (256, 128, 64) if videos.shape[1] % size == 0), None)
    if head is None:
        return NotImplemented
    rows = loss(videos, texts, scale=scale, head_dim=head)
    columns = loss(texts, videos, scale=scale, head_dim=head)
    return (rows.mean() + columns.mean()) / 2


@functools.cache
def _open_clip_loss() -> Any:
    """open_clip's `ClipLoss`, loaded from its file, because the package imports torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise PeerMissing("open_clip_torch is not installed")
    path = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("svilm_open_clip_loss", path)
    if spec is None or spec.loader is None:
        raise PeerMissing(f"open_clip_torch has no {path.name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


def open_clip(**inputs: Any) -> Any:
    """open_clip's `ClipLoss` on one rank."""
    if not _expressible(inputs):
        return NotImplemented
    return _open_clip_loss()(
        inputs["videos"], inputs["texts"], inputs["scale"].to(inputs["videos"].dtype)
    )


PEERS: dict[str, Provider] = {"eager": eager, "compile": compile_, "open_clip": open_clip}
GPU_PEERS: dict[str, Provider] = {"inf_cl": inf_cl}
