"""Plain, compiled and foreign forms of symmetric InfoNCE."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svilm_fast.bench.peers import Provider, compiled


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
    """The whole matrix of logits, cross-entropy both ways, as CLIP's published code has it."""
    if not _expressible(inputs):
        return NotImplemented
    return _materialised(inputs["videos"], inputs["texts"], inputs["scale"])


def compile_(**inputs: Any) -> Any:
    """`eager` under `torch.compile`."""
    if not _expressible(inputs):
        return NotImplemented
    return _compiled(videos=inputs["videos"], texts=inputs["texts"], scale=inputs["scale"])


def inf_cl(**inputs: Any) -> Any:
    """Inf-CL's flash loss, once for each direction."""
    if not _expressible(inputs) or not inputs["videos"].is_cuda:
        return NotImplemented
    loss = importlib.import_module("inf_cl").cal_flash_loss
    videos, texts, scale = inputs["videos"], inputs["texts"], inputs["scale"]
    head = next((size for size in (256, 128, 64) if videos.shape[1] % size == 0), None)
    if head is None:
        return NotImplemented
    rows = loss(videos, texts, scale=scale, head_dim=head)
    columns = loss(texts, videos, scale=scale, head_dim=head)
    return (rows.mean() + columns.mean()) / 2


PROVIDERS: dict[str, Provider] = {"eager": eager, "compile": compile_}
if importlib.util.find_spec("inf_cl") is not None:
    PROVIDERS["inf_cl"] = inf_cl
