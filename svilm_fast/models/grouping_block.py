"""GroupViT's grouping block, with its assignment through the fused grouping op.

Xu et al., "GroupViT: Semantic Segmentation Emerges from Text Supervision" (arXiv 2202.11094).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svilm_fast.kernels.grouping import grouping
from svilm_fast.kernels.grouping.api import Mode
from svilm_fast.models.attention import KeyPadding, attend
from svilm_fast.models.transformer import MLP

# Keeps an empty group at zero; a tiny value makes its gradient explode.
ASSIGNMENT_EPS = 1.0


class CrossAttention(nn.Module):
    """Multi-head attention of the groups over the video tokens."""

    def __init__(self, width: int, heads: int, backend: str) -> None:
        super().__init__()
        self.heads = heads
        self.backend = backend
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, groups: Tensor, tokens: Tensor, padding: KeyPadding | None) -> Tensor:
        query = self.query(groups).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(tokens).unflatten(-1, (2, self.heads, -1)).unbind(dim=2)
        return self.output(
            attend(query, key, value, padding=padding, backend=self.backend).flatten(2)
        )


class TokenAssigner(nn.Module):
    """Assigns every token to one group and returns the projected group means.

    Key and value projections are linear in the tokens, so they are applied to the groups:
    the op sees W_k^T q and the tokens themselves, and W_v is applied to the pooled tokens. The
    result is that of projecting all L tokens, at G / L of the cost.
    """

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.query = nn.Linear(width, width)
        self.key_weight = nn.Parameter(torch.empty(width, width))
        self.key_bias = nn.Parameter(torch.empty(width))
        self.value_weight = nn.Parameter(torch.empty(width, width))
        self.value_bias = nn.Parameter(torch.empty(width))
        self.output = nn.Linear(width, width)

    def forward(
        self,
        groups: Tensor,
        tokens: Tensor,
        *,
        mode: Mode,
        seeds: Tensor | None,
        token_ids: Tensor,
        token_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means of the assigned tokens [b, G, C], counts [b, G] and index int32 [b, L]."""
        query = self.query(groups) * groups.shape[-1] ** -0.5
        assigned = grouping(
            query @ self.key_weight,
            tokens,
            query @ self.key_bias,
            temperature=self.temperature,
            mode=mode,
            seeds=seeds,
            token_ids=token_ids,
            token_mask=token_mask,
            eps=ASSIGNMENT_EPS,
        )
        share = assigned.counts / (assigned.counts + ASSIGNMENT_EPS)
        # Counts are fp32: without the cast, values would be fp32 while the next weight is bf16.
        share = share[..., None].to(self.value_bias.dtype)
        values = F.linear(assigned.pooled, self.value_weight) + share * self.value_bias
        return self.output(values), assigned.counts, assigned.index


class GroupingBlock(nn.Module):
    """Token mixing among the groups, attention over the tokens, assignment, channel MLP."""

    def __init__(
        self,
        width: int,
        heads: int,
        num_groups: int,
        *,
        mlp_ratio: float,
        mixer_ratio: float,
        temperature: float,
        backend: str,
    ) -> None:
        super().__init__()
        self.group_norm = nn.LayerNorm(width)
        self.token_norm = nn.LayerNorm(width)
        self.mixer = MLP(num_groups, int(width * mixer_ratio))
        self.mixer_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads, backend)
        self.cross_mlp_norm = nn.LayerNorm(width)
        self.cross_mlp = MLP(width, int(width * mlp_ratio))
        self.cross_norm = nn.LayerNorm(width)
        self.assignment = TokenAssigner(width, temperature)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_mlp = MLP(width, int(width * mlp_ratio))

    def forward(
        self,
        groups: Tensor,
        tokens: Tensor,
        *,
        mode: Mode,
        seeds: Tensor | None,
        token_ids: Tensor,
        padding: KeyPadding | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Update the groups from the tokens, which are not changed.

        Args:
            groups: [b, G, C].
            tokens: [b, L, C].
            mode: gumbel, hard or soft.
            seeds: int64 [b], needed for gumbel.
            token_ids: int64 [b, L], counters of the noise.
            padding: real tokens, None where all are.

        Returns:
            groups [b, G, C], counts fp32 [b, G] and index int32 [b, L].
        """
        tokens = self.token_norm(tokens)
        mixed = self.mixer(self.group_norm(groups).transpose(1, 2)).transpose(1, 2)
        queries = self.mixer_norm(mixed)
        queries = queries + self.cross_attention(queries, tokens, padding)
        queries = queries + self.cross_mlp(self.cross_mlp_norm(queries))
        queries = self.cross_norm(queries)
        update, counts, index = self.assignment(
            queries,
            tokens,
            mode=mode,
            seeds=seeds,
            token_ids=token_ids,
            token_mask=None if padding is None else padding.mask,
        )
        groups = queries + update
        groups = groups + self.channel_mlp(self.channel_norm(groups))
        return groups, counts.detach(), index
