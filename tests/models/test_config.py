"""Settings of the encoders: presets, derived sizes, clear errors."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from svilm_fast.models.config import PRESETS, ModelConfig, VideoConfig, with_preset
from svilm_fast.objectives.config import ObjectivesConfig, SViLMConfig
from svilm_fast.objectives.scale import ScaleConfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    config = SViLMConfig(model={"preset": name})
    assert config.video.grouping_layers[-1] == config.video.depth
    assert config.video.grid[0] % config.video.num_segments == 0


def test_base_is_the_published_model():
    config = SViLMConfig(model={"preset": "base"})
    video = config.video
    assert (video.width, video.depth, video.heads, video.patch, video.tubelet) == (
        768,
        12,
        12,
        16,
        2,
    )
    assert (video.frames, video.image_size, video.num_groups) == (32, 224, 32)
    assert video.num_tokens == 3136
    assert video.grouping_layers == (6, 9, 12)
    assert (config.text.width, config.text.depth, config.text.vocab_size) == (768, 12, 30522)
    assert config.model.embed_dim == 256


def test_explicit_values_win_over_the_preset():
    values = {"model": {"preset": "tiny"}, "video": {"depth": 8, "drop": {"rate": 0.5}}, "x": 1}
    merged = with_preset(values)
    assert merged["video"]["depth"] == 8
    assert merged["video"]["width"] == PRESETS["tiny"]["video"]["width"]
    assert merged["x"] == 1
    assert values["video"] == {"depth": 8, "drop": {"rate": 0.5}}
    config = SViLMConfig(**{k: v for k, v in values.items() if k != "x"})
    assert config.video.grouping_layers == (4, 6, 8)
    assert config.video.drop.rate == 0.5


def test_a_settings_object_names_the_preset_too():
    width = SViLMConfig(model=ModelConfig(preset="tiny")).video.width
    assert width == PRESETS["tiny"]["video"]["width"] != VideoConfig().width


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"unknown model.preset 'tinny'.*tiny, small, base, large"):
        with_preset({"model": {"preset": "tinny"}})


@pytest.mark.parametrize(
    "depth,layers", [(1, (1,)), (2, (1, 2)), (4, (2, 3, 4)), (12, (6, 9, 12)), (24, (12, 18, 24))]
)
def test_grouping_layers_scale_with_depth(depth, layers):
    assert VideoConfig(depth=depth).grouping_layers == layers
    assert VideoConfig(depth=depth, num_groups=0).grouping_layers == ()


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"frames": 9}, r"frames=9 must be a multiple of video\.tubelet=2"),
        ({"image_size": 100}, r"image_size=100 must be a multiple of video\.patch=16"),
        ({"heads": 7}, r"video\.width=768 must be a multiple of video\.heads=7"),
        ({"num_segments": 5}, r"num_segments=5 must divide the 16 temporal positions"),
        ({"grouping": {"layers": [3, 13]}}, r"between 1 and video\.depth=12"),
        ({"grouping": {"layers": [6, 3]}}, r"must be rising layer numbers"),
        ({"pool": "groups", "num_groups": 0}, r"pool=groups needs video\.num_groups above 0"),
        ({"drop": {"rate": 0.5, "rate_max": 0.2}}, r"rate_max=0\.2 must not be below rate=0\.5"),
        ({"drop": {"rate": 1.0}}, r"less than 1"),
        ({"dorp_path": 0.1}, r"unknown key 'dorp_path': did you mean 'drop_path'"),
    ],
)
def test_bad_video_settings_are_explained(settings, message):
    with pytest.raises(ValidationError, match=message):
        VideoConfig(**settings)


def test_scale_bounds_and_weights_are_checked():
    with pytest.raises(ValidationError, match="minimum <= initial <= maximum"):
        ScaleConfig(initial=200.0)
    off = {name: {"weight": 0} for name in ("contrast", "grounding", "temporal")}
    with pytest.raises(ValueError, match="all objective weights are 0"):
        ObjectivesConfig(**off).check(SViLMConfig())


def test_only_blended_clips_have_a_partner_to_exclude():
    assert SViLMConfig(objectives={"contrast": {"exclude_partner": True}})
    with pytest.raises(ValidationError, match="needs video=blended"):
        SViLMConfig(objectives={"contrast": {"exclude_partner": True, "video": "clean"}})


def test_views_are_those_of_active_objectives():
    assert ObjectivesConfig().reads().views == {"blended"}
    split = {"grounding": {"video": "clean"}}
    assert ObjectivesConfig(**split).reads().views == {"blended", "clean"}
    off = {"grounding": {"video": "clean", "weight": 0}}
    assert ObjectivesConfig(**off).reads().views == {"blended"}
