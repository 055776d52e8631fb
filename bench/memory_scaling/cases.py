"""The measured cases: losses plain, in chunks and fused; a step with and without gradient cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from svilm_fast.bench.synthetic import random_batch
from svilm_fast.distributed.gradient_cache import CachedStep
from svilm_fast.kernels.grounding import grounding_loss
from svilm_fast.kernels.grounding import peers as plain_grounding
from svilm_fast.kernels.infonce import infonce
from svilm_fast.kernels.infonce import peers as plain_infonce
from svilm_fast.tasks.base import task_of
from svilm_fast.train.config.load import load_config
from svilm_fast.train.ranks.process_group import Ranks

DIM, NUM_NOUNS, NUM_GROUPS = 256, 2, 32
# Workspaces of the chunked losses. On a CPU the default of 64 MiB would hide the growth up to some
# thousand pairs; on a GPU it would mean thousands of small launches.
WORKSPACE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
MICRO_BATCH = 8


@dataclass(frozen=True)
class ScalingCase:
    """One way to compute a subject's loss and gradients, and the global batches to run it at.

    `run(batch, device)` makes its own inputs, so they are part of the peak.
    """

    subject: str
    method: str
    run: Callable[[int, torch.device], None]
    batches: tuple[int, ...]
    needs_gpu: bool = False

    @property
    def name(self) -> str:
        """Both names as one."""
        return f"{self.subject}/{self.method}"


def cases(device: torch.device) -> list[ScalingCase]:
    """All cases with batches for that kind of device."""
    gpu = device.type == "cuda"
    losses = (
        ("infonce", _infonce, (512, 8192, 16_384), (4096, 65_536, 262_144)),
        ("grounding", _grounding, (64, 1024, 2048), (256, 4096, 16_384)),
    )
    found = []
    for subject, run, small, large in losses:
        first, plain, ours = large if gpu else small
        found += [
            ScalingCase(subject, "plain", partial(run, "plain"), _doubling(first, plain)),
            ScalingCase(subject, "chunked", partial(run, "reference"), _doubling(first, ours)),
            ScalingCase(
                subject, "fused", partial(run, "fused"), _doubling(first, ours), needs_gpu=True
            ),
        ]
    last = 4096 if gpu else 128
    return [
        *found,
        ScalingCase("step", "single pass", _step, _doubling(MICRO_BATCH, last // 2)),
        ScalingCase("step", "gradient cache", _cached_step, _doubling(MICRO_BATCH, last)),
    ]


def _doubling(first: int, last: int) -> tuple[int, ...]:
    return tuple(first << power for power in range((last // first).bit_length()))


def _unit(device: torch.device, *shape: int) -> Tensor:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = normalize(torch.randn(shape, dtype=dtype, device=device), dim=-1)
    return rows.requires_grad_()


def _scalar(device: torch.device, value: float) -> Tensor:
    return torch.tensor(value, device=device, requires_grad=True)


def _infonce(method: str, batch: int, device: torch.device) -> None:
    videos, texts = _unit(device, batch, DIM), _unit(device, batch, DIM)
    scale = _scalar(device, 1 / 0.07)
    if method == "plain":
        loss = plain_infonce.eager(videos=videos, texts=texts, scale=scale)
    else:
        workspace = None if method == "fused" else WORKSPACE_BYTES[device.type]
        loss = infonce(videos, texts, scale, workspace_bytes=workspace, backend=method)
    loss.backward()


def _grounding(method: str, batch: int, device: torch.device) -> None:
    groups, nouns = _unit(device, batch, NUM_GROUPS, DIM), _unit(device, batch, NUM_NOUNS, DIM)
    mask = torch.ones((batch, NUM_NOUNS), dtype=torch.bool, device=device)
    inputs = (groups, nouns, mask, _scalar(device, 10.0), _scalar(device, 1 / 0.07))
    if method == "plain":
        loss = plain_grounding.eager(*inputs)
    else:
        workspace = None if method == "fused" else WORKSPACE_BYTES[device.type]
        loss = grounding_loss(*inputs, workspace_bytes=workspace, backend=method)
    loss.backward()


def _cached_step(batch: int, device: torch.device) -> None:
    _step(batch, device, MICRO_BATCH)


def _step(batch: int, device: torch.device, micro_batch: int | None = None) -> None:
    """Gradients of all three objectives of the demo's model, without optimizer."""
    config = load_config("demo", [])
    task = task_of(config)
    model: Any = task.model().to(device)
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=device)
    inputs = task.inputs(random_batch(config, batch), 0, ranks)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        if micro_batch is None or micro_batch == batch:
            model(inputs).loss.backward()
        else:
            CachedStep(model, inputs, micro_batch).backward()
