"""Inputs of the GPU tests."""

import torch


def on_gpu(regime, name, batch, dim, dtype):
    """The embeddings of a regime on the GPU, and the scale."""
    videos, texts, scale = regime(name, batch, dim, dtype)
    return videos.cuda(), texts.cuda(), scale


def leaves(rows, batch, dim, dtype=torch.bfloat16):
    """Videos and texts [batch, dim] and the scale; all require gradients."""
    videos, texts = (rows(batch, dim, seed, dtype).cuda().requires_grad_() for seed in (0, 1))
    return videos, texts, torch.tensor(14.0, device="cuda", requires_grad=True)
