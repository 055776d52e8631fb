"""Asks before anything is built whether the attention backend of a configuration can run."""

from __future__ import annotations

import torch

from svilm_fast.models.attention import AttentionRequest, choose_backend
from svilm_fast.train.config.schema import RunConfig


def check_attention(config: RunConfig, device: torch.device) -> None:
    """Raise AttentionUnavailableError when `model.attention` cannot serve one of the encoders.

    The model itself asks in its first step only, which is late: the data are read by then.
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
