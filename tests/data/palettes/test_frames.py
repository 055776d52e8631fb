"""Compressed clips on the device: kept tokens alone are decoded, with the same bytes and loss."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from svilm_fast.core.philox import StepSeeds
from svilm_fast.data.cut_paste import cut_and_paste
from svilm_fast.data.palettes.format import PixelBlock
from svilm_fast.data.palettes.frames import PaletteFrames
from svilm_fast.models.config import VideoConfig
from svilm_fast.models.token_dropping import kept_tokens
from svilm_fast.models.video_encoder import VideoEncoder

BLOCKS = [PixelBlock(1, 1, 1), PixelBlock(1, 4, 4), PixelBlock(2, 2, 2)]
SETTINGS = {
    "frames": 4,
    "image_size": 16,
    "tubelet": 2,
    "patch": 8,
    "width": 24,
    "depth": 1,
    "heads": 3,
    "num_groups": 4,
    "num_segments": 2,
}


def frames_of(block: PixelBlock, clips: int = 3) -> PaletteFrames:
    generator = torch.Generator().manual_seed(0)
    shape = (clips, *block.grid(4, 16, 16))
    codes = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    palettes = torch.randint(
        256, (clips, 256, block.values), generator=generator, dtype=torch.uint8
    )
    return PaletteFrames.of(codes, palettes, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_shows_its_entry(block):
    frames = frames_of(block)
    decoded = frames.decoded()
    assert decoded.shape == frames.shape == (3, 4, 16, 16, 3)
    for clip, t, y, x in ((0, 0, 0, 0), (1, 3, 15, 14), (2, 2, 7, 9)):
        code = frames.codes[clip, t // block.time, y // block.height, x // block.width]
        entry = frames.palettes[clip, int(code)].view(*block, 3)
        inside = entry[t % block.time, y % block.height, x % block.width]
        assert torch.equal(decoded[clip, t, y, x], inside)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("drop", [{"rate": 0.5}, {"rate": 0.25, "rate_max": 0.9}, {"rate": 0.0}])
def test_kept_tokens_equal_those_of_the_whole_clip(block, drop):
    config = VideoConfig(**SETTINGS, drop=drop)
    seeds = StepSeeds(1, 2, torch.tensor([5, 6, 7]))
    frames = frames_of(block)
    kept = kept_tokens(config, seeds, batch=3, device=frames.device).ids
    tubelets = rearrange(
        frames.decoded(), "b (t u) (h p) (w q) c -> b (t h w) (u p q c)", u=2, p=8, q=8
    )
    expected = tubelets[torch.arange(3)[:, None], kept]
    assert torch.equal(frames.tubelets(2, 8, kept), expected)
    assert torch.equal(frames.tubelets(2, 8), tubelets)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pattern", ["random", "motion"])
def test_the_encoder_gives_the_same_bits(block, pattern, monkeypatch):
    torch.manual_seed(0)
    config = VideoConfig(**SETTINGS, drop={"rate": 0.5, "pattern": pattern})
    encoder = VideoEncoder(config, 8, groups=False)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    seeds = StepSeeds(1, 2, torch.tensor([5, 6, 7]))
    frames = frames_of(block)
    whole = frames.decoded()
    gradients = []
    for given in (frames, whole):
        encoder.zero_grad()
        encoder(given, seeds).video.sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert all(bool(gradient.isfinite().all()) for gradient in gradients[0])
    assert all(map(torch.equal, *gradients))
    if pattern == "random":  # looks at no pixel: nothing decodes the clip
        monkeypatch.setattr(PaletteFrames, "decoded", None)
        encoder(frames, seeds)


@pytest.mark.parametrize("block", BLOCKS)
def test_blended_clips_take_the_palette_of_each_frame_s_clip(block):
    frames, seeds = frames_of(block, 5), torch.arange(5) * 7919
    pasted = cut_and_paste(frames.codes, seeds, 2, 2 // block.time)
    blended = frames.pasted(pasted.blended, pasted.paste_mask, pasted.partner)
    expected = cut_and_paste(frames.decoded(), seeds, 2, 2).blended
    assert torch.equal(blended.decoded(), expected)
    part = blended[slice(1, 4)]
    assert len(part) == 3
    assert torch.equal(part.decoded(), expected[1:4])
    ids = torch.tensor([[0, 5], [3, 7], [1, 2]])
    tubelets = rearrange(expected, "b (t u) (h p) (w q) c -> b (t h w) (u p q c)", u=2, p=8, q=8)
    kept = tubelets[1:4][torch.arange(3)[:, None], ids]
    assert torch.equal(part.tubelets(2, 8, ids), kept)


def test_blocks_that_do_not_fill_tubelets_are_refused():
    with pytest.raises(ValueError, match="2x2x2 do not fill tubelets of 1 frames"):
        frames_of(PixelBlock(2, 2, 2)).tubelets(1, 8)
