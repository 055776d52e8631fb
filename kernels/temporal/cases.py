"""Named shapes of the temporal ops, their inputs, and the variants of the static table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from ..registry import Sizes, Variant
from .options import TemporalOptions

BCE_CASES: dict[str, dict[str, Any]] = {
    "target": {"batch": 1024, "segments": 8, "width": 256},
    "long": {"batch": 256, "segments": 32, "width": 768},
    "ragged": {"batch": 3, "segments": 7, "width": 40},
}
POOL_CASES: dict[str, dict[str, Any]] = {
    "target": {"batch": 256, "tokens": 3136, "width": 768, "segments": 8},
    "ragged": {"batch": 3, "tokens": 517, "width": 192, "segments": 7},
}
BCE_SIZES = Sizes(
    tiny={"batch": 1, "segments": 2, "width": 8},
    small={"batch": 5, "segments": 8, "width": 32},
    large={"batch": 256, "segments": 8, "width": 64},
)
POOL_SIZES = Sizes(
    tiny={"batch": 1, "tokens": 4, "width": 8, "segments": 2},
    small={"batch": 3, "tokens": 37, "width": 32, "segments": 8},
    large={"batch": 16, "tokens": 512, "width": 64, "segments": 8},
    cpu={"clips_4": {"batch": 4, "tokens": 784, "width": 192, "segments": 8}},
)


def make_bce_inputs(
    case: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str, seed: int
) -> dict[str, Any]:
    """Keyword arguments of `temporal_bce`: unit vectors, one interval of foreground per sample."""
    batch, count, width = case["batch"], case["segments"], case["width"]
    generator = torch.Generator(device).manual_seed(seed)
    segments = torch.randn(batch, count, width, generator=generator, device=device)
    start = torch.randint(0, count // 2, (batch, 1), generator=generator, device=device)
    place = torch.arange(count, device=device)
    return {
        "segments": F.normalize(segments, dim=-1).to(dtype).requires_grad_(),
        "paste_mask": (place >= start) & (place < start + count // 2),
    }


def make_pool_inputs(
    case: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str, seed: int
) -> dict[str, Any]:
    """Keyword arguments of `segment_pool`: tokens in temporal order, equally many per segment."""
    batch, length, width, count = (case[key] for key in ("batch", "tokens", "width", "segments"))
    generator = torch.Generator(device).manual_seed(seed)
    tokens = torch.randn(batch, length, width, generator=generator, device=device)
    return {
        "tokens": tokens.to(dtype).requires_grad_(),
        "segment_index": torch.arange(length, device=device) * count // length,
        "num_segments": count,
    }


def _bce_variant() -> Variant:
    def run() -> None:
        from .fused.backward import bce_backward
        from .fused.forward import bce_forward

        batch, count, width = (BCE_CASES["target"][key] for key in ("batch", "segments", "width"))
        segments = torch.empty(batch, count, width, dtype=torch.bfloat16, device="meta")
        mask = torch.empty(batch, count, dtype=torch.uint8, device="meta")
        _, logits = bce_forward(segments, mask, TemporalOptions())
        bce_backward(logits.new_empty(()), segments, mask, TemporalOptions(mask), logits)

    return Variant("temporal", "target bfloat16", run, counted=True)


def _pool_variant() -> Variant:
    def run() -> None:
        from .fused.backward import pool_backward
        from .fused.forward import pool_forward

        case = POOL_CASES["target"]
        tokens = torch.empty(
            case["batch"], case["tokens"], case["width"], dtype=torch.bfloat16, device="meta"
        )
        index = torch.empty(case["tokens"], dtype=torch.int64, device="meta")
        segments, counts = pool_forward(tokens, index, case["segments"], None)
        pool_backward(segments, index, None, counts, case["tokens"])

    return Variant("segment_pool", "target bfloat16", run, counted=True)


BCE_VARIANTS = (_bce_variant(),)
POOL_VARIANTS = (_pool_variant(),)
