"""Our reading of ViDROP: values by definition, gradient cache, teacher, small crops, collapse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from svilm_fast.core.errors import ConfigError
from svilm_fast.distributed.gradient_cache import CachedStep
from svilm_fast.models.flops import encoded_tokens, video_flops
from svilm_fast.objectives.collapse import CollapseConfig, halves, spread_metrics
from svilm_fast.objectives.flops import step_flops
from svilm_fast.objectives.vidrop import distance, normalised, over_tokens
from svilm_fast.train.config.load import load_config
from svilm_fast.train.plan.chooser import fixed_choice
from svilm_fast.train.plan.memory import memory
from svilm_fast.train.plan.traffic import step_traffic
from svilm_fast.train.plan.workload import Choice, workload_of
from tests.distributed.conftest import small_config, small_inputs, small_model

ALONE = tuple(f"objectives.{name}.weight=0" for name in ("contrast", "grounding", "temporal"))
SELF = (*ALONE, "video.num_groups=0", "video.mask.rate=0.5", "ema.decay=0.9")
NOISY = ("video.drop.rate=0.25", "video.drop_path=0.2", "video.dropout=0.1")
CROPS = tuple(
    f"objectives.vidrop.crops.{setting}" for setting in ("count=2", "frames=2", "image_size=4")
)
NORM = "objectives.vidrop.normalise={}"
CROPS_DROP = "objectives.vidrop.crops.drop_rate=0.9"
TEACHER, PIXELS = ("objectives.vidrop.target=teacher",), ("objectives.vidrop.target=pixels",)


def inputs(step: int = 0):
    generator = torch.Generator().manual_seed(step)
    crops = torch.randint(0, 256, (12, 2, 2, 4, 4, 3), dtype=torch.uint8, generator=generator)
    return replace(small_inputs(step), crops=crops)


@pytest.mark.parametrize("target", [TEACHER, PIXELS], ids=["teacher", "pixels"])
@pytest.mark.parametrize("rates", [(), ("video.drop.rate_max=0.7",)], ids=["rate", "rates"])
def test_the_cache_gives_the_loss_and_gradients_of_one_pass(target, rates) -> None:
    config = small_config(*SELF, *NOISY, *CROPS, *target, *rates)
    plain, model = (small_model(config).double() for _ in range(2))
    expected = plain(inputs())
    expected.loss.backward()
    step = CachedStep(model, inputs(), 5)
    step.backward()
    torch.testing.assert_close(step.output.loss, expected.loss, rtol=0, atol=1e-10)
    assert step.output.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        torch.testing.assert_close(step.output.metrics[name], value, rtol=0, atol=1e-10)
    found = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        assert (found[name].grad is None) == (parameter.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(found[name].grad, parameter.grad, rtol=0, atol=1e-10)
    assert found["encoder.video.embedding.mask_token"].grad.any()


def test_the_loss_of_masked_patches_by_its_definition() -> None:
    config = small_config(*SELF, *TEACHER)
    model = small_model(config).double()
    with torch.no_grad():
        for parameter in model.teacher.encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    batch = inputs()
    outputs = model.reads.outputs("clean")
    seen = model.encoder.encode_video(batch.frames, batch.seeds, outputs)
    taught = model.teacher.encoder(batch.frames, None, outputs)  # nothing is dropped here
    head = model.objectives.vidrop.patch_head
    target = F.layer_norm(taught.tokens, (16,))
    expected = torch.stack(
        [
            (head(seen.tokens[clip]) - target[clip]).square().mean(dim=1)[seen.masked[clip]].mean()
            for clip in range(12)
        ]
    ).mean()
    found = model(batch)
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-12)
    found.loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.encoder.parameters())
    names = {name for name, _ in model.named_parameters()} | set(model.state_dict())
    assert not [name for name in names if "teacher" in name]


def test_targets_over_the_tokens_of_a_clip() -> None:
    states = torch.randn(3, 9, 5, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([9, 6, 2])[:, None]
    found = over_tokens(states, mask)
    for clip, count in enumerate((9, 6, 2)):
        own = states[clip, :count]
        expected = (own - own.mean(0)) / (own.var(0, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(found[clip, :count], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(over_tokens(states + 7, mask), found)  # what all have in common
    assert not over_tokens(torch.ones(1, 4, 2), None).any()
    losses = [
        small_model(small_config(*SELF, *TEACHER, NORM.format(kind)))(inputs()).loss.item()
        for kind in ("channels", "tokens")
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_a_small_crop_predicts_the_teachers_mean_of_its_own_clip() -> None:
    overrides = (*ALONE, "video.num_groups=0", "ema.decay=0.9", *CROPS, *TEACHER)
    model = small_model(small_config(*overrides)).double()
    batch = inputs()
    whole = model.teacher.encoder(batch.frames, None, model.reads.outputs("clean")).tokens
    target = F.layer_norm(whole.mean(dim=1), (16,))
    shown = model.reads.shown("crops", model.encoder.video.config)
    errors = []
    for crop in range(2):
        one = model.encoder.encode_video(
            batch.crops[:, crop], None, model.reads.outputs("crops"), shown
        )
        predicted = model.objectives.vidrop.crop_head(one.tokens.mean(dim=1))
        errors.append((predicted - target).square().mean(dim=1))
    found = model(batch)
    torch.testing.assert_close(found.loss, torch.stack(errors).mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.metrics["loss_crops_vidrop"], found.loss.detach())


def test_distances() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert float(distance(a, b, "mse")) == 1.0
    assert float(distance(a, 3 * a, "cosine")) == pytest.approx(0, abs=1e-6)
    assert float(distance(a, b, "smooth_l1")) == 0.5
    torch.testing.assert_close(normalised(7 * a + 3), normalised(a), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*ALONE, *TEACHER, "ema.decay=0.9"), "video.mask.rate=0 hides nothing"),
        (
            (*SELF, *TEACHER, "ema.decay=null"),
            "set ema.decay .*or objectives.vidrop.weight=0; found ema.decay=null",
        ),
        ((*SELF, *TEACHER, "ema.start_step=5"), "ema.start_step=0, or .* found ema.decay=0.9"),
        ((*SELF, *CROPS, "objectives.vidrop.crops.image_size=6"), "multiple of video.patch=4"),
        ((*SELF, "objectives.vidrop.crops.scale=[0.5,0.1]"), "smallest <= largest"),
        ((*SELF, *PIXELS, "video.lock=true"), "which video.lock=true freezes"),
        ((*SELF, *PIXELS, "video.drop.rate=0.99"), "video.drop keeps 1 of 16 tokens"),
        (
            (*SELF, *PIXELS, *CROPS, "objectives.vidrop.crops.image_size=8", CROPS_DROP),
            "objectives.vidrop.crops keeps 1 of 8 tokens",
        ),
    ],
)
def test_settings_without_a_task_are_refused(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config("objectives.vidrop.weight=1", *overrides)


def states_of(whole: torch.Tensor) -> torch.Tensor:
    """Two equal halves of each clip."""
    return torch.stack([whole, whole], dim=1)


def test_the_measures_of_collapse() -> None:
    alike = spread_metrics(states_of(torch.ones(8, 5) * 3))
    assert float(alike["feature_spread"]) == pytest.approx(0, abs=1e-6)
    apart = spread_metrics(states_of(torch.eye(8, 20)))
    assert float(apart["feature_spread"]) == pytest.approx(1)
    assert float(apart["feature_rank"]) == pytest.approx(7)  # one is lost to the mean
    line = torch.tensor([[1.0, 0.1 * sign * n] for n in range(1, 5) for sign in (1, -1)])
    assert float(spread_metrics(states_of(line))["feature_rank"]) == pytest.approx(1, abs=0.05)
    assert spread_metrics(torch.ones(1, 2, 4)) == {}
    # Two clips always lie on a line, which says nothing about their encoder.
    assert set(spread_metrics(torch.randn(7, 2, 4))) == {"feature_spread"}
    tall = torch.randn(40, 2, 6)
    wide = spread_metrics(torch.cat([tall, torch.zeros(40, 2, 60)], dim=2))
    for name, value in spread_metrics(tall).items():
        torch.testing.assert_close(wide[name], value)


def test_the_spread_does_not_depend_on_the_number_of_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(64, 1, 30, generator=generator)
    noise = torch.randn(64, 2, 30, generator=generator)
    states = 4 + content + 0.3 * noise
    whole = float(spread_metrics(states)["feature_spread"])
    pairs = [float(spread_metrics(pair)["feature_spread"]) for pair in states.split(2)]
    assert sum(pairs) / len(pairs) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_tokens_that_only_know_their_place_have_no_spread(share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    places, clips = torch.randn(64, 30, generator=generator), 64
    content = torch.randn(clips, 1, 30, generator=generator)
    drawn = torch.rand(clips, 64, generator=generator).argsort(dim=1)[:, :32].sort(dim=1).values
    tokens = 0.5 + places[drawn] + share * content
    found = spread_metrics(halves(tokens, None))
    # The clips' means differ, by what dropping left of each.
    assert float(torch.nn.functional.normalize(tokens.mean(1), dim=-1).std(dim=0).norm()) > 0.2
    collapsed = CollapseConfig().alarm(100, {k: float(v) for k, v in found.items()}, "")
    assert (collapsed is not None) == (share == 0), found


def test_halves_leave_fillers_out() -> None:
    tokens = torch.arange(12.0).view(1, 6, 2)
    mask = torch.tensor([[True, True, True, False, False, False]])
    expected = torch.stack([tokens[0, [0, 2]].mean(0), tokens[0, 1]])
    torch.testing.assert_close(halves(tokens, mask)[0], expected)
    torch.testing.assert_close(halves(tokens[:, :3], None)[0], expected)


def test_an_alarm_is_raised_after_the_first_steps_alone() -> None:
    collapsed = {"feature_spread": 0.001, "feature_rank": 3.0}
    config = CollapseConfig()
    assert config.alarm(99, collapsed, "Help") is None
    text = config.alarm(100, collapsed, "Help").text
    assert "have collapsed: feature_spread 0.001" in text
    assert "rank" not in text
    assert not config.alarm(100, collapsed, "").stop
    assert config.alarm(100, {"feature_spread": 0.3, "feature_rank": 1.3}, "") is not None
    assert config.alarm(100, {"feature_spread": 0.3, "feature_rank": 2.1}, "") is None
    assert config.alarm(100, {"feature_spread": 0.3}, "") is None  # few clips
    assert CollapseConfig(action="stop").alarm(100, collapsed, "").stop
    assert CollapseConfig(action="ignore").alarm(100, collapsed, "") is None
    assert config.alarm(100, {"loss": 1.0}, "") is None  # one clip a rank
    vidrop = small_config(*SELF, *PIXELS).objectives.vidrop
    assert "target=pixels" not in vidrop.alarm("vidrop", 100, collapsed).text


def test_teacher_and_crops_are_planned() -> None:
    bare = small_config(*SELF, *NOISY, *PIXELS)
    full = small_config(*SELF, *NOISY, *TEACHER, *CROPS)
    sizes = {"global_batch": 12, "num_nouns": 2}
    video, reads = full.video, full.objectives.reads()
    small = reads.shown("crops", video)
    one = {"groups": False, "outputs": reads.outputs("clean")}
    student = video_flops(video, 8, tokens=encoded_tokens(video), **one)
    crop = video_flops(small, 8, tokens=encoded_tokens(small), **one)
    assert encoded_tokens(small) == 2
    found = step_flops(full, **sizes).video
    assert found.backward == 12 * (student.backward + 2 * crop.backward)
    assert found.forward == 12 * (2 * student.forward + 2 * crop.forward)
    plans = []
    for config in (bare, full):
        workload = workload_of(config, 2, on_gpu=False)
        plans.append(memory(workload, fixed_choice(config, 2, 6)))
    model = small_model(full)
    parameters = sum(p.numel() for p in model.encoder.video.parameters())
    assert "teacher" not in plans[0].resting
    assert plans[1].resting["teacher"] == 4 * parameters
    assert plans[1].resting["clips as uint8"] == 6 * (4 * 8 * 8 * 3 + 2 * 2 * 4 * 4 * 3)


def test_what_the_teacher_gathers_is_planned() -> None:
    config = small_config(*SELF, *TEACHER, "ema.every_steps=4")

    def sent(stage: int, ranks: int = 2) -> float:
        workload = workload_of(config, ranks, on_gpu=False)
        traffic = step_traffic(workload, Choice(stage, False, False))
        return sum(part.size for part in traffic if part.what == "average for the teacher")

    sizes = workload_of(config, 2, on_gpu=False).parameters
    assert sent(0) == sent(1, ranks=1) == 0
    # Four bytes, there and back, every fourth step.
    assert sent(1) == sent(2) == 4 * 2 * sizes.trained / 4
    assert sent(3) == 4 * sizes.teacher / 4  # no parameter is persistent


@pytest.mark.parametrize("recipe", ["vidrop_base", "vidrop_demo"])
def test_the_recipes_load(recipe: str) -> None:
    config = load_config(recipe)
    assert config.objectives.reads().teacher
    assert not config.objectives.reads().texts
    assert workload_of(config, 2, on_gpu=False).parameters.teacher > 0
