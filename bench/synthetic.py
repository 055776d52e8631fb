"""A batch of random clips and captions in the shapes of a configuration, without data on disk."""

from __future__ import annotations

import torch

from svilm_fast.data.batch import ClipBatch, sample_key
from svilm_fast.train.config.schema import RunConfig


def random_batch(config: RunConfig, pairs: int, *, seed: int = 0) -> ClipBatch:
    """`pairs` samples on the CPU; every second caption has one noun less than it could."""
    generator = torch.Generator().manual_seed(seed)
    video, texts = config.video, config.data.tokenizer
    nouns = config.data.nouns.per_caption
    side = video.image_size
    ids = [f"random {seed}-{number}" for number in range(pairs)]

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(3, config.text.vocab_size, shape, generator=generator)

    noun_mask = torch.ones(pairs, nouns, dtype=torch.bool)
    noun_mask[::2, -1] = False
    return ClipBatch(
        frames=torch.randint(
            0, 256, (pairs, video.frames, side, side, 3), generator=generator, dtype=torch.uint8
        ),
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
