"""The temporal grouping loss and segment pooling in plain PyTorch, and compiled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peers import Provider, compiled


def eager_bce(segments: Tensor, paste_mask: Tensor) -> Tensor:
    """Both centres as masked means, two logits per segment, binary cross-entropy."""
    z, target = segments.float(), paste_mask.float()
    members = torch.stack([target, 1 - target], dim=1)
    centres = members @ z / members.sum(-1, keepdim=True)
    logits = (z @ centres.mT) / 0.1
    return F.binary_cross_entropy_with_logits(logits[..., 0] - logits[..., 1], target)


def eager_pool(tokens: Tensor, segment_index: Tensor, num_segments: int) -> Tensor:
    """Scatter-add into fp32 sums, divided by the counts."""
    sums = torch.zeros(
        len(tokens), num_segments, tokens.shape[-1], device=tokens.device, dtype=torch.float32
    )
    sums = sums.index_add(1, segment_index, tokens.float())
    # Not bincount: it synchronises with the device and breaks a compiled graph.
    ones = torch.ones_like(segment_index, dtype=torch.float32)
    counts = ones.new_zeros(num_segments).index_add(0, segment_index, ones).clamp(min=1)
    return (sums / counts[:, None]).to(tokens.dtype)


BCE_PEERS: dict[str, Provider] = {"eager": eager_bce, "compile": compiled(eager_bce)}
POOL_PEERS: dict[str, Provider] = {"eager": eager_pool, "compile": compiled(eager_pool)}
