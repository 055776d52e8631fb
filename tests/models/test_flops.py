"""FLOPs and parameters: an independent count by hand, and torch's counter on the real modules."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from svilm_fast.core.philox import StepSeeds
from svilm_fast.models.config import TextConfig, VideoConfig
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.flops import (
    Flops,
    count_parameters,
    encoded_tokens,
    text_flops,
    video_flops,
)
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.objectives.flops import step_flops

FULL = VideoOutputs()
BARE = VideoOutputs(groups=False, segments=False)


def test_base_video_encoder_by_hand():
    """ViT-B/16 on 16 x 14 x 14 tubelets of 2 x 16 x 16 pixels with 32 group tokens, D = 256."""
    tokens, sequence, width = 3136, 3168, 768
    macs_embedding = tokens * (2 * 16 * 16 * 3) * width
    macs_layer = (
        sequence * width * 3 * width  # query, key, value
        + 2 * sequence * sequence * width  # logits, weighted sum
        + sequence * width * width  # output
        + 2 * sequence * width * 4 * width  # MLP
    )
    macs_grouping = (
        2 * width * 32 * 384  # token mixing over 32 groups, hidden 384
        + tokens * width * 2 * width  # keys and values of the cross-attention
        + 2 * 32 * width * width  # its queries and output
        + 2 * 32 * tokens * width  # its logits and weighted sum
        + 4 * 32 * width * width  # assignment: query, key, value, output on the side of groups
        + 2 * 32 * tokens * width  # assignment logits and pooling
        + 2 * 2 * 32 * width * 4 * width  # two MLPs
    )
    macs_heads = (1 + 8 + 32) * width * 256
    forward = 2 * (macs_embedding + 12 * macs_layer + 3 * macs_grouping + macs_heads)
    # Pixels need no gradient, so the embedding has one product in backward, all others two.
    backward = 2 * forward - 2 * macs_embedding
    config = SViLMConfig(model={"preset": "base"})
    assert video_flops(config.video, 256) == Flops(forward, backward)
    assert 0.9e12 < forward < 1.0e12


def test_base_parameters_by_hand():
    def linear(inner: int, outer: int) -> int:
        return inner * outer + outer

    width, norm = 768, 2 * 768
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    layer = 2 * norm + linear(width, 3 * width) + linear(width, width) + mlp
    grouping = (
        6 * norm
        + linear(32, 384)
        + linear(384, 32)
        + linear(width, width) * 2
        + linear(width, 2 * width)
        + 4 * linear(width, width)
        + 2 * mlp
    )
    video = (
        linear(1536, width)
        + (196 + 16 + 32) * width
        + 12 * layer
        + 3 * grouping
        + 2 * norm
        + 2 * linear(width, 256)
    )
    text = (30522 + 32) * width + 12 * layer + norm + linear(width, 256)
    config = SViLMConfig(model={"preset": "base"})
    with torch.device("meta"):
        encoder = DualEncoder(config.model, config.video, config.text)
    assert count_parameters(encoder) == {"video": video, "text": text, "total": video + text}


def test_parameters_of_what_pre_trained_weights_need():
    config = SViLMConfig(
        model={"preset": "base"},
        video={"pool": "class_token", "class_tokens": 16, "pre_norm": True, "num_groups": 0},
        text={"post_norm": True, "embedding_norm": True},
    )
    plain = SViLMConfig(model={"preset": "base"}, video={"num_groups": 0})

    def counts(blocks):
        with torch.device("meta"):
            return count_parameters(DualEncoder(blocks.model, blocks.video, blocks.text))

    found, before = counts(config), counts(plain)
    assert found["video"] - before["video"] == (16 + 2) * 768
    assert found["text"] == before["text"]  # a norm after the embedding instead of one at the end


VIDEO = {
    "frames": 4,
    "image_size": 16,
    "tubelet": 2,
    "patch": 4,
    "width": 24,
    "depth": 4,
    "heads": 3,
    "num_groups": 5,
    "num_segments": 2,
}
TEXT = {"vocab_size": 20, "length": 9, "width": 16, "depth": 2, "heads": 2}


def counted(run) -> tuple[int, int]:
    """What torch counts in the forward and the backward of a loss."""
    with FlopCounterMode(display=False) as forward:
        loss = run()
    with FlopCounterMode(display=False) as backward:
        if loss.requires_grad:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.fixture
def encoder_of(monkeypatch):
    # torch counts no FLOPs for the fused attention kernels of a CPU.
    monkeypatch.setenv("SVILM_ATTENTION", "reference")
    full = SViLMConfig(model={"preset": "tiny", "embed_dim": 8})
    return lambda video, text, groups=True: DualEncoder(full.model, video, text, groups=groups)


@pytest.mark.parametrize(
    "changes,groups,outputs",
    [
        ({}, True, FULL),
        ({}, True, BARE),
        ({}, False, BARE),
        ({"pool": "class_token", "depth": 3}, True, FULL),
        ({"pool": "groups", "mlp_ratio": 2.5}, True, BARE),
        ({"grouping": {"layers": [1, 2], "mixer_ratio": 0.25}}, True, FULL),
        ({"drop": {"rate": 0.5}}, True, FULL),
        ({"pool": "class_token", "class_tokens": 2, "pre_norm": True}, True, FULL),
        *(
            ({"grouping": {"layers": [2, 3]}, "lock": lock}, True, FULL)
            for lock in (False, True, 0, 1, 3, 4)
        ),
    ],
)
def test_video_formula_equals_torchs_counter(encoder_of, changes, groups, outputs):
    config = VideoConfig(**VIDEO | changes)
    encoder = encoder_of(config, TextConfig(**TEXT), groups)
    frames = torch.randint(0, 256, (3, 4, 16, 16, 3), dtype=torch.uint8)

    def run():
        features = encoder.encode_video(frames, StepSeeds(0, 0, torch.arange(3)), outputs)
        used = [features.video, features.segments, features.groups]
        return sum(embedding.sum() for embedding in used if embedding is not None)

    expected = video_flops(config, 8, tokens=encoded_tokens(config), groups=groups, outputs=outputs)
    # The reference pools segments by a product with a one-hot matrix, which is no needed work.
    pooling = 2 * config.num_segments * encoded_tokens(config) * config.width * outputs.segments
    forward, backward = counted(run)
    assert forward == 3 * (expected.forward + pooling)
    assert backward == 3 * (expected.backward + (0 if config.lock is True else pooling))


@pytest.mark.parametrize(
    "changes",
    [
        *({"lock": lock} for lock in (False, True, 0, 1, 2)),
        {"causal": True, "pool": "end", "activation": "quick_gelu"},
        {"post_norm": True, "embedding_norm": True},
    ],
)
def test_text_formula_equals_torchs_counter(encoder_of, changes):
    config = TextConfig(**TEXT | changes)
    encoder = encoder_of(VideoConfig(**VIDEO), config)
    tokens, mask = torch.randint(0, 20, (3, 7)), torch.ones(3, 7, dtype=torch.bool)
    expected = text_flops(config, 8, 7)
    found = counted(lambda: encoder.encode_text(tokens, mask).sum())
    assert found == (3 * expected.forward, 3 * expected.backward)


def test_similarities_with_a_locked_side_have_one_product_less_in_backward():
    def pairs(**locks):
        config = SViLMConfig(
            model={"preset": "tiny"},
            video={"lock": locks.get("video", False)},
            text={"lock": locks.get("text", False)},
        )
        return step_flops(config, global_batch=6, num_nouns=2).objectives

    free, locked = pairs(), pairs(text=True)
    assert free.backward == 2 * free.forward
    assert locked.backward == locked.forward == free.forward


def test_token_dropping_lowers_the_count():
    full = VideoConfig(**VIDEO)
    half = VideoConfig(**VIDEO | {"drop": {"rate": 0.5}})
    assert (encoded_tokens(full), encoded_tokens(half)) == (32, 16)
    mixed = VideoConfig(**VIDEO | {"drop": {"rate": 0.25, "rate_max": 0.75}})
    assert encoded_tokens(mixed) == 16
    assert (
        video_flops(half, 8, tokens=16).forward
        < 0.6 * video_flops(full, 8, tokens=encoded_tokens(full)).forward
    )
