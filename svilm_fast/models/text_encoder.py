"""Text transformer; captions and prompted nouns pass through it in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models import checkpointing
from svilm_fast.models.attention import KeyPadding
from svilm_fast.models.config import TextConfig
from svilm_fast.models.initialisation import sines
from svilm_fast.models.noise import TEXT_LAYER_OFFSET, drop_path_rates, residual_noise
from svilm_fast.models.precision import at_least_fp32, masked_mean, project, unit_norm
from svilm_fast.models.transformer import Block, BlockOptions, Span


@dataclass(frozen=True)
class TextSequences:
    """n sequences of one length: tokens int64 [n, S], mask bool [n, S], real tokens first.

    nouns: they are prompted nouns, which `text.unit_nouns` is about.
    """

    tokens: Tensor
    mask: Tensor
    seeds: StepSeeds | None = None
    nouns: bool = False


class TokenEmbedding(nn.Module):
    """Learned embeddings of tokens and of their positions, normalised if `text.embedding_norm`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.position = nn.Parameter(torch.empty(config.length, config.width))
        self.norm: nn.LayerNorm | None = None
        if config.embedding_norm:
            self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def sine_positions(self, name: str) -> Tensor | None:
        """Return the sines and cosines of the position table; None for another parameter."""
        if name != "position":
            return None
        length, width = self.position.shape
        return sines(torch.arange(length), width)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [n, S] to [n, S, C]."""
        embedded = F.embedding(tokens, self.tokens) + self.position[: tokens.shape[1]]
        return embedded if self.norm is None else self.norm(embedded)


class TextEncoder(nn.Module):
    """Token sequences to embeddings, of unit norm but for nouns under `text.unit_nouns=false`."""

    def __init__(self, config: TextConfig, embed_dim: int, *, attention: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        options = BlockOptions(
            config.activation, config.norm_eps, post_norm=config.post_norm, causal=config.causal
        )
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, attention, options)
            for _ in range(config.depth)
        )
        self.norm = (
            nn.Identity() if config.post_norm else nn.LayerNorm(config.width, eps=config.norm_eps)
        )
        self.projection = nn.Linear(config.width, embed_dim)

    def forward(self, sequences: Sequence[TextSequences]) -> list[Tensor]:
        """Embeds several sets of sequences, each of its own length, in one pass over the weights.

        A sequence without a real token (a missing noun) gives a finite vector without meaning.

        Returns:
            One [n, D] per set, fp32 (float64 for a float64 model).

        Raises:
            ValueError: a set longer than `text.length`, or a mask of another shape.
        """
        for item in sequences:
            self._check(item)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.lock is not True):
            return self._embedded(sequences)

    def states(self, item: TextSequences) -> Tensor:
        """Return the normalised states of all tokens after the last layer, [n, S, C].

        Those of padding have no meaning. Raises ValueError as `forward` does.
        """
        self._check(item)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.lock is not True):
            states = self._layers([item], [_with_first_token(item.mask)])
            return self.norm(states).unflatten(0, tuple(item.tokens.shape))

    def _embedded(self, sequences: Sequence[TextSequences]) -> list[Tensor]:
        masks = [_with_first_token(item.mask) for item in sequences]
        parts = self._pooled(self._layers(sequences, masks), masks)
        embedded = project(self.projection, torch.cat(parts))
        split = embedded.split([len(part) for part in parts])
        return [
            at_least_fp32(part) if item.nouns and not self.config.unit_nouns else unit_norm(part)
            for part, item in zip(split, sequences, strict=True)
        ]

    def _layers(self, sequences: Sequence[TextSequences], masks: list[Tensor]) -> Tensor:
        """Return the states of all sequences after the last layer, flat: [sum of n * S, C]."""
        states = torch.cat([self.embedding(item.tokens).flatten(0, 1) for item in sequences])
        positions = [torch.arange(mask.shape[1], device=mask.device) for mask in masks]
        paddings = [KeyPadding(mask) for mask in masks]
        rates = drop_path_rates(self.config.drop_path, self.config.depth)
        recompute = self.config.checkpoint_activations and torch.is_grad_enabled()
        for number, block in enumerate(self.blocks):
            spans = tuple(
                Span(
                    mask.shape[0],
                    mask.shape[1],
                    position,
                    padding,
                    residual_noise(
                        item.seeds, TEXT_LAYER_OFFSET + number, rates[number], self.config.dropout
                    ),
                )
                for item, mask, position, padding in zip(
                    sequences, masks, positions, paddings, strict=True
                )
            )
            states = checkpointing.run(block, states, spans, recompute=recompute)
        return states

    def _pooled(self, states: Tensor, masks: list[Tensor]) -> list[Tensor]:
        parts = []
        split = states.split([mask.numel() for mask in masks])
        for part, mask in zip(split, masks, strict=True):
            tokens = part.unflatten(0, tuple(mask.shape))
            if self.config.pool == "start":
                parts.append(self.norm(tokens[:, 0]))
            elif self.config.pool == "end":
                rows = torch.arange(len(mask), device=mask.device)
                parts.append(self.norm(tokens[rows, mask.sum(dim=1) - 1]))
            else:
                parts.append(masked_mean(self.norm(tokens), mask))
        return parts

    def _check(self, item: TextSequences) -> None:
        if item.tokens.dim() != 2 or item.mask.shape != item.tokens.shape:
            raise ValueError(
                f"text tokens and mask must both be [n, S], got {list(item.tokens.shape)} and "
                f"{list(item.mask.shape)}"
            )
        if item.tokens.shape[1] > self.config.length:
            raise ValueError(
                f"text of {item.tokens.shape[1]} tokens does not fit text.length="
                f"{self.config.length}: raise it, or truncate in the tokenizer"
            )


def _with_first_token(mask: Tensor) -> Tensor:
    """Attention over no key at all is NaN: the first token always counts as real."""
    return F.pad(mask[:, 1:], (1, 0), value=True)
