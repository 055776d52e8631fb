"""The transformer block of both encoders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svilm_fast.models.attention import KeyPadding, attend
from svilm_fast.models.config import Activation
from svilm_fast.models.noise import ResidualNoise


@dataclass(frozen=True)
class Span:
    """Sequences of one length inside a flat token tensor.

    `token_ids` int64 [L] or [b, L] count a token's noise; `padding` marks real tokens.
    """

    batch: int
    length: int
    token_ids: Tensor
    padding: KeyPadding | None = None
    noise: ResidualNoise | None = None

    @property
    def rows(self) -> int:
        return self.batch * self.length


@dataclass(frozen=True)
class BlockOptions:
    """What pre-trained weights may need of a block; the defaults are those of our own towers."""

    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    post_norm: bool = False
    causal: bool = False


class MLP(nn.Module):
    """Linear, GELU (or QuickGELU), Linear."""

    def __init__(
        self, width: int, hidden: int, out: int | None = None, activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, out or width)
        self.activation = F.gelu if activation == "gelu" else quick_gelu

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.activation(self.expand(x)))


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


class SelfAttention(nn.Module):
    """Multi-head self-attention inside every sequence of every span."""

    def __init__(self, width: int, heads: int, backend: str, *, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.backend = backend
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, spans: tuple[Span, ...]) -> Tensor:
        parts = self.qkv(x).split([span.rows for span in spans])
        attended = [self._attend(part, span) for part, span in zip(parts, spans, strict=True)]
        return self.output(_joined(attended))

    def _attend(self, qkv: Tensor, span: Span) -> Tensor:
        query, key, value = qkv.view(span.batch, span.length, 3, self.heads, -1).unbind(dim=2)
        attended = attend(
            query,
            key,
            value,
            padding=span.padding,
            query_padding=span.padding,
            backend=self.backend,
            causal=self.causal,
        )
        return attended.reshape(span.rows, -1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); post-norm: norm(x + attention(x)) and so on.

    Works on flat tokens [sum of b * L over the spans, C], so that sequences of different lengths
    share every projection without padding one to another.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        backend: str,
        options: BlockOptions = BlockOptions(),
    ) -> None:
        super().__init__()
        self.post_norm = options.post_norm
        self.attention_norm = nn.LayerNorm(width, eps=options.norm_eps)
        self.attention = SelfAttention(width, heads, backend, causal=options.causal)
        self.mlp_norm = nn.LayerNorm(width, eps=options.norm_eps)
        self.mlp = MLP(width, int(width * mlp_ratio), activation=options.activation)
        self.compiled = False

    def forward(self, x: Tensor, spans: tuple[Span, ...]) -> Tensor:
        # Evaluation comes with batches of many sizes, each of which would be compiled again.
        part = _compiled if self.compiled and self.training else _as_is
        if all(span.noise is None for span in spans):
            return part(_block)(self, x, spans)
        # The noise holds the number of the step: traced, it would be compiled anew in every step.
        x = x + _with_noise(part(_attention_branch)(self, x, spans), spans, position=0)
        x = _after(self, self.attention_norm, x)
        x = x + _with_noise(part(_mlp_branch)(self, x), spans, position=1)
        return _after(self, self.mlp_norm, x)


def _attention_branch(block: Block, x: Tensor, spans: tuple[Span, ...]) -> Tensor:
    return block.attention(_before(block, block.attention_norm, x), spans)


def _mlp_branch(block: Block, x: Tensor) -> Tensor:
    return block.mlp(_before(block, block.mlp_norm, x))


def _block(block: Block, x: Tensor, spans: tuple[Span, ...]) -> Tensor:
    x = _after(block, block.attention_norm, x + _attention_branch(block, x, spans))
    return _after(block, block.mlp_norm, x + _mlp_branch(block, x))


def _before(block: Block, norm: nn.Module, x: Tensor) -> Tensor:
    return x if block.post_norm else norm(x)


def _after(block: Block, norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x) if block.post_norm else x


@functools.cache
def _compiled(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(part, dynamic=False)


def _as_is(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return part


def _with_noise(branch: Tensor, spans: tuple[Span, ...], position: int) -> Tensor:
    parts = branch.split([span.rows for span in spans])
    scaled = []
    for part, span in zip(parts, spans, strict=True):
        if span.noise is not None:
            sequences = part.view(span.batch, span.length, -1)
            part = span.noise.apply(sequences, span.token_ids, position).flatten(0, 1)
        scaled.append(part)
    return _joined(scaled)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
