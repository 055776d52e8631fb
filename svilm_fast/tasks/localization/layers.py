"""Layers over time [b, C, T] with a mask [b, T] of the steps that exist."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models.noise import residual_noise


class MaskedConv(nn.Module):
    """A convolution over time that sees zeros beyond the end; a stride halves the mask with it."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(
            inputs, outputs, size, stride=stride, padding=size // 2, groups=groups
        )

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[b, inputs, T] to [b, outputs, T / stride], and the mask of the result."""
        kept = mask[:, :: self.stride]
        return self.conv(states * mask[:, None]) * kept[:, None], kept


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of [b, C, T]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, states: Tensor) -> Tensor:
        """[b, C, T]."""
        return self.norm(states.transpose(1, 2)).transpose(1, 2)


class LocalAttention(nn.Module):
    """Self-attention of every step to the `window` steps around it; None: to all.

    Memory grows with T * window. Queries, keys and values pass a depthwise convolution first, whose
    stride shortens the sequence.
    """

    def __init__(self, width: int, heads: int, window: int | None, stride: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.mixers = nn.ModuleList(
            MaskedConv(width, width, 3, stride=stride, groups=width) for _ in range(3)
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(3))
        self.projections = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.output = nn.Conv1d(width, width, 1)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[b, C, T] to [b, C, T / stride], and the mask of the result."""
        parts, kept = [], mask
        for mixer, norm, project in zip(self.mixers, self.norms, self.projections):
            mixed, kept = mixer(states, mask)
            rows = project(norm(mixed)).unflatten(1, (self.heads, -1)).transpose(2, 3)
            parts.append(rows)  # [b, h, T, d]
        query, key, value = parts
        mixed = (
            self._global(query, key, value, kept)
            if self.window is None
            else (self._local(query, key, value, kept))
        )
        merged = mixed.transpose(2, 3).flatten(1, 2)
        return self.output(merged) * kept[:, None], kept

    def _global(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        allowed = mask[:, None, None, :]
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)

    def _local(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        assert self.window is not None
        reach = self.window // 2
        keys, values = (
            functional.pad(each, (0, 0, reach, reach)).unfold(2, self.window, 1)
            for each in (key, value)
        )  # [b, h, T, d, w]
        seen = functional.pad(mask, (reach, reach)).unfold(1, self.window, 1)[:, None]
        logits = torch.einsum("bhtd,bhtdw->bhtw", query, keys) / math.sqrt(query.shape[-1])
        # A step beyond the end sees nothing; its result is masked by the caller.
        logits = logits.float().masked_fill(~seen, -1e9)
        return torch.einsum("bhtw,bhtdw->bhtd", logits.softmax(-1).to(values.dtype), values)


class ScaledBranch(nn.Module):
    """The learned scale of a residual branch, one per channel."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width, 1), initial))

    def forward(self, branch: Tensor) -> Tensor:
        """[b, C, T]."""
        return branch * self.scale


class PyramidBlock(nn.Module):
    """A transformer block over time; with stride 2 it makes the next level of the pyramid."""

    def __init__(
        self,
        width: int,
        heads: int,
        window: int | None,
        *,
        stride: int,
        drop_path: float,
        initial_scale: float,
        layer: int,
    ) -> None:
        super().__init__()
        self.stride, self.drop_path, self.layer = stride, drop_path, layer
        self.norm = ChannelNorm(width)
        self.attention = LocalAttention(width, heads, window, stride)
        self.attention_scale = ScaledBranch(width, initial_scale)
        self.mlp_norm = ChannelNorm(width)
        self.mlp = nn.Sequential(
            nn.Conv1d(width, 4 * width, 1), nn.GELU(), nn.Conv1d(4 * width, width, 1)
        )
        self.mlp_scale = ScaledBranch(width, initial_scale)

    def forward(
        self, states: Tensor, mask: Tensor, seeds: StepSeeds | None
    ) -> tuple[Tensor, Tensor]:
        """[b, C, T] to [b, C, T / stride], and the mask of the result."""
        noise = residual_noise(seeds, self.layer, self.drop_path, 0.0)
        nothing = mask.new_zeros(1, dtype=torch.int64)
        branch, kept = self.attention(self.norm(states), mask)
        branch = self.attention_scale(branch)
        if self.stride > 1:
            states = functional.max_pool1d(states * mask[:, None], 3, self.stride, 1)
        states = states * kept[:, None] + (
            branch if noise is None else noise.apply(branch, nothing, 0)
        )
        branch = self.mlp_scale(self.mlp(self.mlp_norm(states)) * kept[:, None])
        return states + (branch if noise is None else noise.apply(branch, nothing, 1)), kept


def sinusoid_positions(width: int, steps: int, device: torch.device) -> Tensor:
    """Sinusoidal positions, float32 [width, steps], scaled by 1 / sqrt(width)."""
    place = torch.arange(steps, device=device, dtype=torch.float32)
    pair = torch.arange(width, device=device) // 2
    angles = place[None] / 10000.0 ** (2 * pair[:, None] / width)
    even = (torch.arange(width, device=device) % 2 == 0)[:, None]
    return torch.where(even, angles.sin(), angles.cos()) / math.sqrt(width)
