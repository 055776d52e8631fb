"""FLOPs of a step: against torch's counter on the encoders, and by hand for the losses."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from svilm_fast.models.flops import encoded_tokens
from svilm_fast.objectives.flops import step_flops

LENGTHS = {"global_batch": 6, "num_nouns": 2, "text_length": 7, "noun_length": 4}
OFF = {"weight": 0}


@pytest.mark.parametrize(
    "objectives",
    [
        {},
        {"contrast": {"video": "clean"}, "grounding": {"video": "clean"}},
        {"grounding": OFF},
        {"temporal": OFF, "contrast": OFF},
    ],
)
def test_encoders_equal_torchs_counter(make_config, make_model, inputs, objectives, monkeypatch):
    # torch counts no FLOPs for the fused attention kernels of a CPU.
    monkeypatch.setenv("SVILM_ATTENTION", "reference")
    config = make_config(objectives, drop={"rate": 0.25})
    model = make_model(objectives, drop={"rate": 0.25})
    with FlopCounterMode(display=False) as counter:
        features = model.embed(inputs)
        sum(tensor.sum() for tensor in features.differentiable()).backward()
    expected = step_flops(config, **LENGTHS)
    video = config.video
    # The reference pools segments by a one-hot product, which is no needed work; a video embedding
    # that no loss reads is projected all the same, without a backward.
    pooling = 4 * 6 * video.num_segments * encoded_tokens(video) * video.width
    pooling *= config.objectives.temporal.weight > 0
    unread = 4 * 6 * video.width * config.model.embed_dim
    passes = len(config.objectives.reads().views)
    unread *= passes - (config.objectives.contrast.weight > 0)
    counted = counter.get_total_flops()
    assert counted == (expected.video + expected.text).total + pooling - unread


def test_losses_by_hand(make_config):
    flops = step_flops(make_config(), **LENGTHS)
    similarities = 2 * 6 * 6 * 8
    grounded = 2 * (6 * 2) * (6 * 3) * 8
    assert flops.objectives.forward == similarities + grounded
    assert flops.objectives.backward == 2 * (similarities + grounded)
    assert flops.total == (flops.video + flops.text + flops.objectives).total


def test_an_objective_without_weight_costs_nothing(make_config):
    full = step_flops(make_config(), **LENGTHS)
    contrast = step_flops(make_config({"grounding": OFF, "temporal": OFF}), **LENGTHS)
    assert contrast.video.total < full.video.total
    assert contrast.text == step_flops(make_config(), **LENGTHS | {"num_nouns": 0}).text
    assert contrast.objectives.forward == 2 * 6 * 6 * 8
    temporal = step_flops(make_config({"grounding": OFF, "contrast": OFF}), **LENGTHS)
    assert temporal.text.total == temporal.objectives.total == 0


def test_two_sources_cost_two_passes(make_config):
    one = step_flops(make_config(), **LENGTHS).video.total
    two = step_flops(make_config({"temporal": {}, "grounding": {"video": "clean"}}), **LENGTHS)
    assert 1.7 < two.video.total / one < 2.0
