"""Masked tokens: exact counts, no fillers, drawn from the sample alone, unseen by the encoder."""

from __future__ import annotations

import torch

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models.config import VideoConfig
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.token_dropping import TokenSelection, select_tokens
from svilm_fast.models.token_masking import select_masked
from svilm_fast.models.video_encoder import VideoEncoder, VideoOutputs

SEEDS = torch.arange(64) * 7919 + 5
SIZES = {
    "frames": 4,
    "image_size": 16,
    "patch": 4,
    "tubelet": 2,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "num_groups": 0,
    "num_segments": 2,
}


def test_counts_are_exact_and_every_token_is_masked_equally_often() -> None:
    seeds = torch.arange(4000)
    kept = TokenSelection(torch.arange(12).expand(4000, -1), None)
    masked = select_masked(seeds, kept, 12, 0.4)
    assert (masked.sum(dim=1) == 4).all()
    share = masked.double().mean(dim=0)
    chi_square = ((share - 1 / 3).square() / (1 / 3 * 2 / 3 / 4000)).sum()
    assert chi_square < 31.3  # 11 degrees of freedom, p = 0.001
    assert (select_masked(seeds, kept, 12, 0.999).sum(dim=1) == 11).all()
    assert (select_masked(seeds, kept, 12, 0.001).sum(dim=1) == 1).all()


def test_a_filler_is_never_masked_and_the_batch_does_not_matter() -> None:
    kept = select_tokens(SEEDS, (2, 4, 4), rate=0.1, rate_max=0.8)
    masked = select_masked(SEEDS, kept, 32, 0.5)
    assert not (masked & ~kept.mask).any()
    real = kept.mask.sum(dim=1)
    assert torch.equal(masked.sum(dim=1), torch.minimum((real // 2).clamp_min(1), real - 1))
    some = TokenSelection(kept.ids[9:12], kept.mask[9:12])
    assert torch.equal(select_masked(SEEDS[9:12], some, 32, 0.5), masked[9:12])


def encoder_of(**changed) -> VideoEncoder:
    torch.manual_seed(0)
    encoder = VideoEncoder(VideoConfig(**SIZES, **changed), 8, groups=False)
    initialise(encoder)
    return encoder


def test_the_encoder_does_not_see_masked_pixels_but_the_teacher_pass_does() -> None:
    encoder = encoder_of(drop={"rate": 0.25}, mask={"rate": 0.5})
    frames = torch.randint(0, 256, (3, 4, 16, 16, 3), dtype=torch.uint8)
    seeds = StepSeeds(1, 2, torch.arange(3))
    outputs = VideoOutputs(segments=False, tokens=True, pixels=True)
    found = encoder(frames, seeds, outputs)
    assert found.tokens.shape == (3, 24, 16)
    assert (found.masked.sum(dim=1) == 12).all()
    # Other pixels under every masked token of the first clip.
    changed = frames.clone()
    for place in found.token_ids[0][found.masked[0]].tolist():
        t, h, w = place // 16, place // 4 % 4, place % 4
        changed[0, 2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4] ^= 255
    again = encoder(changed, seeds, outputs)
    assert torch.equal(found.tokens, again.tokens)
    assert not torch.equal(found.pixels[0], again.pixels[0])
    whole, other = (
        encoder(clips, seeds, outputs, dropping_only=True) for clips in (frames, changed)
    )
    assert whole.masked is None
    assert torch.equal(whole.token_ids, found.token_ids)
    assert not torch.allclose(whole.tokens[0], other.tokens[0])
    pixels = found.pixels.flatten(0, 1)
    torch.testing.assert_close(pixels.mean(dim=1), torch.zeros(72), rtol=0, atol=1e-4)
    torch.testing.assert_close(pixels.var(dim=1, correction=0), torch.ones(72), rtol=1e-3, atol=0)


def test_small_views_have_interpolated_positions() -> None:
    encoder = encoder_of()
    small = encoder.config.model_copy(update={"frames": 2, "image_size": 8})
    with torch.no_grad():
        encoder.embedding.space_position.copy_(torch.full((16, 16), 3.0))
        encoder.embedding.time_position.copy_(torch.arange(2.0)[:, None].expand(2, 16))
    frames = torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8)
    ids = torch.arange(4)
    found = encoder.embedding(frames, ids, None, small)
    pixels = encoder.embedding.projection(encoder.embedding._normalised(frames.view(1, 4, -1)))
    torch.testing.assert_close(found - pixels, torch.full((1, 4, 16), 3.5))
    assert encoder(frames, shown=small, outputs=VideoOutputs(segments=False)).grid == (1, 2, 2)
