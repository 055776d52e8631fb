"""Sigmoid focal loss and 1-D distance-IoU loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss (Lin et al. 2017) of every entry, in float32.

    targets: in [0, 1], the shape of `logits`; they may be smoothed.
    """
    logits, targets = logits.float(), targets.float()
    shares = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = shares * targets + (1 - shares) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * (1 - right) ** gamma * entropy


def distance_iou_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - IoU + (distance of the middles / length of the hull)^2, in float32.

    Both are distances [n, 2] of the same points to the start and to the end, 0 or more
    (Zheng et al. 2020, in one dimension). Returns [n].
    """
    found, wanted = found.float(), wanted.float()
    shared = torch.minimum(found, wanted).sum(-1)
    hull = torch.maximum(found, wanted).sum(-1)
    joined = found.sum(-1) + wanted.sum(-1) - shared
    tiny = torch.finfo(torch.float32).eps
    offset = 0.5 * ((found[:, 1] - found[:, 0]) - (wanted[:, 1] - wanted[:, 0]))
    return 1 - shared / joined.clamp(min=tiny) + (offset / hull.clamp(min=tiny)) ** 2
