"""What the model is given: only what its objectives read, with numbers keyed by sample."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.palettes.format import PixelBlock
from svilm_fast.data.palettes.frames import PaletteFrames
from svilm_fast.tasks.pretrain.inputs import model_inputs
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.ranks.process_group import Ranks


def batch(count: int = 4, frames: int = 8) -> ClipBatch:
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None, None]
    return ClipBatch(
        frames=pixels.expand(count, frames, 8, 8, 3).clone(),
        keys=torch.arange(100, 100 + count),
        ids=[f"clip{row}" for row in range(count)],
        captions=["a"] * count,
        nouns=[[]] * count,
        text_tokens=torch.zeros(count, 4, dtype=torch.int64),
        text_mask=torch.ones(count, 4, dtype=torch.bool),
        noun_tokens=torch.zeros(count, 2, 4, dtype=torch.int64),
        noun_token_mask=torch.ones(count, 2, 4, dtype=torch.bool),
        noun_mask=torch.ones(count, 2, dtype=torch.bool),
        frame_index=torch.zeros(count, frames, dtype=torch.int64),
        crop=torch.zeros(count, 4),
        flipped=torch.zeros(count, dtype=torch.bool),
    )


def settings(*overrides: str) -> RunConfig:
    return load_config(None, ["model.preset=tiny", *overrides])


def on_rank(rank: int) -> Ranks:
    return Ranks(rank, rank, 2, torch.device("cpu"))


def test_blended_frames_follow_the_mask_and_replay_alike() -> None:
    config = settings()
    inputs = model_inputs(batch(), config, 3, on_rank(0))
    assert inputs.frames is None
    assert inputs.blended is not None
    assert inputs.paste_mask is not None
    own = inputs.blended[:, :, 0, 0, 0] == torch.arange(4)[:, None]
    assert torch.equal(own, inputs.paste_mask.repeat_interleave(2, dim=1))
    again = model_inputs(batch(), config, 3, on_rank(0))
    assert torch.equal(again.blended, inputs.blended)
    steps = [model_inputs(batch(), config, step, on_rank(0)).paste_mask for step in range(6)]
    assert any(not torch.equal(mask, inputs.paste_mask) for mask in steps)


def test_compressed_clips_are_blended_as_their_frames_are() -> None:
    config = settings("objectives.grounding.video=clean")
    block = PixelBlock(2, 2, 2)
    video = config.video
    codes = torch.randint(256, (4, *block.grid(video.frames, video.image_size, video.image_size)))
    palettes = torch.randint(256, (4, 256, block.values)).to(torch.uint8)
    loaded = dataclasses.replace(batch(), frames=codes.to(torch.uint8), palettes=palettes)
    inputs = model_inputs(loaded, config, 3, on_rank(0))
    whole = PaletteFrames.of(loaded.frames, palettes, block).decoded()
    expected = model_inputs(dataclasses.replace(batch(), frames=whole), config, 3, on_rank(0))
    assert torch.equal(inputs.paste_mask, expected.paste_mask)
    assert torch.equal(inputs.frames.decoded(), expected.frames)
    assert torch.equal(inputs.blended.decoded(), expected.blended)
    for part, other in zip(inputs.split(3), expected.split(3), strict=True):
        assert torch.equal(part.blended.decoded(), other.blended)


def test_without_grounding_no_noun_reaches_the_model() -> None:
    assert model_inputs(batch(), settings(), 3, on_rank(0)).noun_tokens is not None
    inputs = model_inputs(batch(), settings("objectives.grounding.weight=0"), 3, on_rank(0))
    assert inputs.noun_tokens is inputs.noun_token_mask is inputs.noun_mask is None


def test_the_clips_of_a_batch_that_is_on_the_device_already_stay_as_they_are() -> None:
    loaded = batch()
    inputs = model_inputs(loaded, settings(), 3, on_rank(0))
    assert torch.equal(loaded.frames, batch().frames)
    assert not torch.equal(inputs.blended, loaded.frames)


def test_pairs_of_different_ranks_never_share_a_number() -> None:
    config = settings()
    numbers = [model_inputs(batch(), config, 0, on_rank(rank)).pair_ids for rank in range(2)]
    assert set(numbers[0].tolist()).isdisjoint(numbers[1].tolist())


@pytest.mark.parametrize(
    ("overrides", "clean", "blended"),
    [
        ((), False, True),
        (("objectives.grounding.video=clean",), True, True),
        (
            (
                "objectives.contrast.video=clean",
                "objectives.grounding.video=clean",
                "objectives.temporal.weight=0",
            ),
            True,
            False,
        ),
    ],
)
def test_only_videos_that_an_objective_reads_are_made(overrides, clean, blended) -> None:
    inputs = model_inputs(batch(), settings(*overrides), 0, on_rank(0))
    assert (inputs.frames is not None) == clean
    assert (inputs.blended is not None) == blended
