"""Random clips, captions and features in the shapes of a configuration, without data on disk."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.keys import sample_key
from svilm_fast.models.flops import encoded_tokens
from svilm_fast.objectives.features import Features, Reads, ViewFeatures
from svilm_fast.train.config.schema import RunConfig


def random_batch(
    config: RunConfig, pairs: int, *, seed: int = 0, frames: Tensor | None = None
) -> ClipBatch:
    """`pairs` samples on the CPU; every second caption has one noun less than the maximum.

    frames: used in place of random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    video, texts = config.video, config.data.tokenizer
    nouns = config.data.nouns.per_caption
    side = video.image_size
    ids = [f"random {seed}-{number}" for number in range(pairs)]

    def tokens(*shape: int) -> Tensor:
        return torch.randint(3, config.text.vocab_size, shape, generator=generator)

    if frames is None:
        shape = (pairs, video.frames, side, side, 3)
        frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    noun_mask = torch.ones(pairs, nouns, dtype=torch.bool)
    noun_mask[::2, -1] = False
    return ClipBatch(
        frames=frames,
        keys=torch.tensor([sample_key(name) for name in ids]),
        ids=ids,
        captions=[""] * pairs,
        nouns=[[""] * nouns for _ in range(pairs)],
        text_tokens=tokens(pairs, texts.length),
        text_mask=torch.ones(pairs, texts.length, dtype=torch.bool),
        noun_tokens=tokens(pairs, nouns, texts.noun_length),
        noun_token_mask=torch.ones(pairs, nouns, texts.noun_length, dtype=torch.bool),
        noun_mask=noun_mask,
        frame_index=torch.arange(video.frames).expand(pairs, -1).contiguous(),
        crop=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(pairs, 1),
        flipped=torch.zeros(pairs, dtype=torch.bool),
    )


def random_features(
    config: RunConfig, pairs: int, reads: Reads, *, seed: int, device: torch.device
) -> Features:
    """Features of `pairs` samples that `reads` names, as leaves that need a gradient."""
    generator = torch.Generator().manual_seed(seed)
    video, width, nouns = config.video, config.model.embed_dim, config.data.nouns.per_caption
    shapes = {
        "video": (width,),
        "groups": (video.num_groups, width),
        "segments": (video.num_segments, width),
        "tokens": (encoded_tokens(video), video.width),
    }

    def unit(*shape: int) -> Tensor:
        drawn = F.normalize(torch.randn(pairs, *shape, generator=generator), dim=-1)
        return drawn.to(device).requires_grad_()

    def mask(*shape: int) -> Tensor:
        return torch.ones(pairs, *shape, dtype=torch.bool, device=device)

    views: dict[str, Any] = {
        view: ViewFeatures(
            **{feature: unit(*shapes[feature]) for feature in sorted(reads.features_of(view))},
            segment_mask=mask(video.num_segments),
        )
        for view in sorted(reads.views)
    }
    own = mask(video.num_segments)
    own[:, video.num_segments // 2 :] = False
    return Features(
        **views,
        texts=unit(width) if reads.texts else None,
        nouns=unit(nouns, width) if reads.nouns else None,
        noun_mask=mask(nouns) if reads.nouns else None,
        paste_mask=own,
        pair_ids=torch.arange(pairs, device=device) + seed * pairs,
    )
