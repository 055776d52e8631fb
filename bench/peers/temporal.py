"""Plain and compiled forms of the temporal grouping loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from svilm_fast.bench.peers import Provider, compiled


def eager(segments: Tensor, paste_mask: Tensor) -> Tensor:
    """Both centres as masked means, two-way logits by product, binary cross-entropy."""
    z, target = segments.float(), paste_mask.float()
    members = torch.stack([target, 1 - target], dim=1)
    centres = members @ z / members.sum(-1, keepdim=True)
    logits = (z @ centres.mT) / 0.1
    return F.binary_cross_entropy_with_logits(logits[..., 0] - logits[..., 1], target)


PROVIDERS: dict[str, Provider] = {"eager": eager, "compile": compiled(eager)}
