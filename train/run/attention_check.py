"""Checks before a run starts whether the configured attention backend can serve the model."""

from __future__ import annotations

import torch

from svilm_fast.models.attention import AttentionRequest, choose_backend
from svilm_fast.train.config.schema import RunConfig


def check_attention(config: RunConfig, device: torch.device) -> None:
    """Raise AttentionUnavailableError when `model.attention` cannot serve one of the encoders.

    The model would find out only in its first step, after the data were opened.
    """
    dtype = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
    widths = [
        (config.video.width // config.video.heads, False),
        (config.text.width // config.text.heads, True),
    ]
    objectives = {} if config.task.own_loss else config.objectives.active()
    for objective in objectives.values():
        widths += [(width, True) for width in objective.attention_heads(config)]
    for head_dim, padded in widths:
        request = AttentionRequest(device, dtype, head_dim, padded)
        choose_backend(request, config.model.attention)
