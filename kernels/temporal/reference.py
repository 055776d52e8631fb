"""The oracles of the temporal ops: plain PyTorch with autograd, also in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .options import Loss, TemporalOptions


def bce(segments: Tensor, paste_mask: Tensor, options: TemporalOptions) -> Tensor:
    """`api.temporal_bce` without its checks."""
    segment_mask = options.segment_mask
    with torch.autocast(segments.device.type, enabled=False):
        z = segments.to(torch.promote_types(segments.dtype, torch.float32))
        valid = torch.ones_like(paste_mask) if segment_mask is None else segment_mask
        target = paste_mask.to(z.dtype)
        foreground = (paste_mask & valid).to(z.dtype)
        background = (~paste_mask & valid).to(z.dtype)
        n_foreground = foreground.sum(1, keepdim=True)
        n_background = background.sum(1, keepdim=True)
        # An absent segment may hold any value, including NaN.
        z = z.masked_fill(~valid[..., None], 0)
        # v = z^f - z^b
        centre_difference = (foreground / n_foreground.clamp_min(1))[:, None] @ z - (
            background / n_background.clamp_min(1)
        )[:, None] @ z
        # logit_t = <z_t, z^f - z^b> / tau
        logits = (z @ centre_difference.mT).squeeze(-1) / options.temperature
        if options.loss == "bce":
            terms = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        else:
            terms = (torch.sigmoid(logits) - target).square()
        counted = (foreground + background) * (n_foreground > 0) * (n_background > 0)
        per_sample = (terms * counted).sum(1) / (n_foreground + n_background).clamp_min(1)[:, 0]
        return per_sample.sum() / max(len(z), 1)


def temporal_bce_reference(
    segments: Tensor,
    paste_mask: Tensor,
    *,
    segment_mask: Tensor | None = None,
    temperature: float = 0.1,
    loss: Loss = "bce",
) -> Tensor:
    """`bce` with the arguments of `api.temporal_bce` except `backend`."""
    return bce(segments, paste_mask, TemporalOptions(segment_mask, temperature, loss))


def segment_pool_reference(
    tokens: Tensor,
    segment_index: Tensor,
    num_segments: int,
    *,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`api.segment_pool` without its checks."""
    with torch.autocast(tokens.device.type, enabled=False):
        x = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        index = segment_index.expand(tokens.shape[:2])
        member = index[:, None] == torch.arange(num_segments, device=tokens.device)[:, None]
        if token_mask is not None:
            member = member & token_mask[:, None]
        counts = member.sum(dim=-1)
        # A token without a segment may hold any value, including NaN.
        x = x.masked_fill(~member.any(dim=1)[..., None], 0)
        # segment_s = sum_l [index_l = s] x_l / n_s
        segments = member.to(x.dtype) @ x / counts.clamp_min(1)[..., None]
        return segments.to(tokens.dtype), counts > 0
