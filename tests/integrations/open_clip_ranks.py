"""One gloo rank: FusedClipLoss and other losses on the same embeddings; saves what they give.

Arguments: the folder for the results, then the path of open_clip's loss.py if it is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch.nn.functional import cross_entropy, normalize

from svilm_fast.integrations.open_clip import FusedClipLoss

BATCH, DIM = 5, 16
MODES = {"local": (True, True), "global": (False, True), "no gather gradient": (False, False)}


def plain_loss(local_loss: bool, gather_with_grad: bool) -> Any:
    """The three losses written out: gathered features, the matrix of logits, cross-entropy."""
    rank, world = dist.get_rank(), dist.get_world_size()

    def gathered(rows: torch.Tensor) -> torch.Tensor:
        if gather_with_grad:
            return torch.cat(torch.distributed.nn.all_gather(rows))
        parts = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[rank] = rows
        return torch.cat(parts)

    def loss(videos: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        every_video, every_text = gathered(videos), gathered(texts)
        labels = torch.arange(len(every_video))
        if local_loss:
            own = labels[rank * len(videos) : (rank + 1) * len(videos)]
            rows = cross_entropy(scale * videos @ every_text.T, own)
            return (rows + cross_entropy(scale * texts @ every_video.T, own)) / 2
        logits = scale * every_video @ every_text.T
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2

    return loss


def measured(loss_of: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(dist.get_rank())
    rows = normalize(torch.randn(2, BATCH, DIM, generator=generator, dtype=torch.float64), dim=-1)
    videos, texts = (side.clone().requires_grad_() for side in rows)
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    loss = loss_of(videos, texts, scale)
    gradients = torch.autograd.grad(loss, (videos, texts, scale))
    # DDP averages the gradients of shared parameters.
    shared = gradients[2].clone()
    dist.all_reduce(shared)
    return {"loss": loss.detach(), "videos": gradients[0], "texts": gradients[1], "scale": shared}


def main(folder: str, installed: str | None = None) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    place = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    theirs = None
    if installed is not None:
        spec = importlib.util.spec_from_file_location("open_clip_loss", installed)
        assert spec is not None
        assert spec.loader is not None
        theirs = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(theirs)
    found: dict[str, Any] = {}
    for name, (local, with_grad) in MODES.items():
        options = {"local_loss": local, "gather_with_grad": with_grad}
        found[name] = {
            "ours": measured(FusedClipLoss(**options, **place)),
            "plain": measured(plain_loss(local, with_grad)),
        }
        if theirs is not None:
            found[name]["open_clip"] = measured(theirs.ClipLoss(**options, **place))
    wrong = FusedClipLoss(gather_with_grad=True, rank=place["rank"], world_size=7)
    try:
        measured(wrong)
    except ValueError as error:
        found["wrong"] = str(error)
    torch.save(found, Path(folder) / f"rank_{place['rank']}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
