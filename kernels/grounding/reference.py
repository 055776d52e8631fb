"""The oracle of grounding: plain PyTorch that follows the equations of README.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..checks import compute_dtype

BETA_MAX = 60.0
# Dot products held at once: 16 MiB in float32.
CHUNK_ELEMENTS = 1 << 22

# (dots [c, K, v, G], weights [c, K], *parameters) -> scores [v, c]
ChunkScore = Callable[..., Tensor]


class _ClampInward(torch.autograd.Function):
    """Clamp that drops a gradient only if a descent step would lead further out of the range."""

    @staticmethod
    def forward(ctx, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.low, ctx.high = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        (value,) = ctx.saved_tensors
        outward = ((value > ctx.high) & (gradient < 0)) | ((value < ctx.low) & (gradient > 0))
        return gradient.masked_fill(outward, 0), None, None


def clamp_beta(beta: Tensor) -> Tensor:
    """beta clamped to [0, 60]; outside, a gradient passes only if a descent step leads back."""
    return _ClampInward.apply(beta, 0.0, BETA_MAX)


def caption_weights(noun_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """w_jk = mask_jk / sum_k mask_jk; a row of zeros for a caption without nouns."""
    mask = noun_mask.to(dtype)
    return mask / mask.sum(1, keepdim=True).clamp(min=1)


def chunked_scores(
    groups: Tensor,
    nouns: Tensor,
    noun_mask: Tensor,
    score: ChunkScore,
    parameters: Sequence[Tensor] = (),
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
    expansion: int = 1,
) -> Tensor:
    """Apply `score` to the dot products of a few videos at a time; recompute them in backward.

    groups [b, G, D], nouns [c, K, D], noun_mask bool [c, K] -> [b, c]. At most about
    `chunk_elements / expansion` dot products exist at a time, in backward too.
    """
    dtype = compute_dtype(groups, nouns, *parameters)
    with torch.autocast(groups.device.type, enabled=False):
        tokens = groups.to(dtype)
        # Padding may hold any value, including NaN: clear its value and its gradient.
        rows = nouns.to(dtype).masked_fill(~noun_mask[:, :, None], 0).flatten(0, 1)
        weights = caption_weights(noun_mask, dtype)
        parameters = [parameter.to(dtype) for parameter in parameters]
        per_video = max(1, noun_mask.numel() * groups.shape[1] * expansion)
        videos = max(1, chunk_elements // per_video)

        def chunk(tokens: Tensor, rows: Tensor, *parameters: Tensor) -> Tensor:
            dots = rows @ tokens.flatten(0, 1).T
            shape = (*noun_mask.shape, *tokens.shape[:2])
            return score(dots.view(shape), weights, *parameters)

        if groups.shape[0] <= videos:
            return chunk(tokens, rows, *parameters)
        recomputed = partial(checkpoint, chunk, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([recomputed(part, rows, *parameters) for part in tokens.split(videos)])


def softmax_score(dots: Tensor, weights: Tensor, beta: Tensor) -> Tensor:
    """S_ij = sum_k w_jk sum_m p_m a_m with p = softmax_m(beta a); [c, K, v, G] -> [v, c]."""
    attention = torch.softmax(beta * dots, dim=-1)
    similarity = (attention * dots).sum(-1)
    return torch.einsum("ck,ckv->vc", weights, similarity)


def grounding_scores(
    groups: Tensor,
    nouns: Tensor,
    noun_mask: Tensor,
    beta: Tensor,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """`api.grounding_scores` without its checks."""
    bounded = clamp_beta(beta)
    return chunked_scores(
        groups, nouns, noun_mask, softmax_score, [bounded], chunk_elements=chunk_elements
    )


def matrix_infonce(scores: Tensor, scale: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE over scores [n, n] of videos (rows) and captions (columns).

    loss = 1/(2N) (sum over valid i of lse_{j valid}(s S_ij) - s S_ii
                   + sum over valid j of lse_{all i}(s S_ij) - s S_jj), N valid captions.
    """
    dtype = compute_dtype(scores, scale)
    with torch.autocast(scores.device.type, enabled=False):
        logits = scores.to(dtype) * scale.to(dtype)
        if not scores.shape[0]:
            return logits.sum()
        diagonal = logits.diagonal()
        if valid is None:
            rows = logits.logsumexp(1)
            return (rows + logits.logsumexp(0) - 2 * diagonal).mean() / 2
        # Rows of invalid captions are not masked: they are dropped below, and a row of -inf would
        # have a NaN gradient.
        left_out = valid[:, None] & ~valid[None, :]
        rows = logits.masked_fill(left_out, float("-inf")).logsumexp(1)
        terms = rows + logits.logsumexp(0) - 2 * diagonal
        return terms.masked_fill(~valid, 0).sum() / (2 * valid.sum().clamp(min=1))


def grounding_loss(
    groups: Tensor,
    nouns: Tensor,
    noun_mask: Tensor,
    beta: Tensor,
    scale: Tensor,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """`api.grounding_loss` without its checks; captions without nouns are invalid."""
    scores = grounding_scores(groups, nouns, noun_mask, beta, chunk_elements=chunk_elements)
    return matrix_infonce(scores, scale, valid=noun_mask.any(1))
