"""Public functions of the temporal ops: they check the arguments and choose the path."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import choose
from ..checks import check_rows, check_shape, checked_divisor, whole_number
from ..operators import distinct
from .fused.layout import unsupported_bce, unsupported_pool
from .options import LOSSES, Loss, TemporalOptions
from .reference import bce, segment_pool_reference


def temporal_bce(
    segments: Tensor,
    paste_mask: Tensor,
    *,
    segment_mask: Tensor | None = None,
    temperature: float = 0.1,
    loss: Loss = "bce",
    backend: str | None = None,
) -> Tensor:
    """Loss that classifies every segment of a cut-and-paste video as foreground or background.

    z^f and z^b are the means of the sample's segments where the paste mask is True and False, and
    logit_t = <z_t, z^f - z^b> / temperature. The loss of a sample is the mean over its segments of
    BCE-with-logits(logit, mask) or of (sigmoid(logit) - mask)^2; the result is the mean over the
    samples (S-ViLM, intra-clip temporal grouping; a softmax over the two centres equals this
    sigmoid). The gradient also flows through the centres. A sample without foreground or background
    gives 0.

    Args:
        segments: [b, T, D], fp16, bf16, fp32 or float64.
        paste_mask: bool [b, T], True where the segment shows the sample's own video.
        segment_mask: bool [b, T] or None; a False segment is ignored and may hold any value.
        temperature: in [2^-64, 2^64].
        loss: "bce" or "mse".
        backend: "auto", "fused", "reference" or None (see `kernels.backend.choose`).

    Returns:
        0-dim, fp32 (float64 for float64).

    Raises:
        ValueError: an invalid shape, dtype or setting.
        TypeError: `temperature` is not a number.
        RuntimeError: the fused path was requested and cannot run.
    """
    check_rows("temporal_bce", "segments", segments, "[b, T, D]")
    rows = list(segments.shape[:2])
    check_shape("temporal_bce", "paste_mask", paste_mask, rows, torch.bool)
    if segment_mask is not None:
        check_shape("temporal_bce", "segment_mask", segment_mask, rows, torch.bool)
    temperature = checked_divisor("temporal_bce", "temperature", temperature)
    if loss not in LOSSES:
        raise ValueError(f"temporal_bce: loss is {loss!r}; expected bce or mse")
    path = choose(
        "temporal",
        (segments, paste_mask, segment_mask),
        backend=backend,
        unsupported=unsupported_bce(segments),
    )
    paste_mask, segment_mask = distinct(paste_mask, segment_mask)
    options = TemporalOptions(segment_mask, temperature, loss)
    if path == "reference":
        return bce(segments, paste_mask, options)
    from .fused.function import fused_temporal_bce

    return fused_temporal_bce(segments, paste_mask, options)


def segment_pool(
    tokens: Tensor,
    segment_index: Tensor,
    num_segments: int,
    *,
    token_mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Average a video's tokens over each of its temporal segments.

    Args:
        tokens: [b, L, C], fp16, bf16, fp32 or float64.
        segment_index: int32 or int64, [b, L] or [L]; a token whose index is outside
            [0, num_segments) belongs to no segment and may hold any value, including NaN.
        num_segments: T.
        token_mask: bool [b, L] or None; a False token belongs to no segment.
        backend: "auto", "fused", "reference" or None (see `kernels.backend.choose`).

    Returns:
        segments [b, T, C] in the dtype of the tokens (0 for a segment without tokens), and
        segment_mask bool [b, T], True where a segment has a token.

    Raises:
        ValueError: an invalid shape, dtype or setting.
        TypeError: `num_segments` is not a whole number.
        RuntimeError: the fused path was requested and cannot run.
    """
    check_rows("segment_pool", "tokens", tokens, "[b, L, C]")
    batch, length, _ = tokens.shape
    if segment_index.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"segment_pool: segment_index must be int32 or int64, got {segment_index.dtype}"
        )
    shape = [length] if segment_index.dim() == 1 else [batch, length]
    check_shape("segment_pool", "segment_index", segment_index, shape, segment_index.dtype)
    if token_mask is not None:
        check_shape("segment_pool", "token_mask", token_mask, [batch, length], torch.bool)
    num_segments = whole_number("segment_pool", "num_segments", num_segments)
    if num_segments < 1:
        raise ValueError(f"segment_pool: num_segments must be at least 1, got {num_segments}")
    path = choose(
        "segment_pool",
        (tokens, segment_index, token_mask),
        backend=backend,
        unsupported=unsupported_pool(tokens, num_segments),
    )
    if path == "reference":
        return segment_pool_reference(tokens, segment_index, num_segments, token_mask=token_mask)
    from .fused.function import fused_segment_pool

    return fused_segment_pool(tokens, segment_index, num_segments, token_mask)
