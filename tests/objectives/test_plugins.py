"""Objectives of the test folder: configured, trained, planned and shown like the others."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svilm_fast.cli import app
from svilm_fast.core.errors import ConfigError
from svilm_fast.distributed.gradient_cache import CachedStep
from svilm_fast.models.flops import product
from svilm_fast.objectives.base import register
from svilm_fast.objectives.flops import step_flops
from svilm_fast.report.curves import panels_with
from svilm_fast.train.checkpoint.resume import changed_settings
from svilm_fast.train.config.load import dump_config, explain, load_config, read_yaml
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.plan.chooser import fixed_choice
from svilm_fast.train.plan.dry_run import describe
from svilm_fast.train.plan.memory import memory
from svilm_fast.train.plan.traffic import loss_traffic
from svilm_fast.train.plan.workload import workload_of
from svilm_fast.train.run.progress import summary
from svilm_fast.train.run_app import run_app
from tests.distributed.conftest import (
    NOISE,
    assert_alike,
    small_config,
    small_inputs,
    small_model,
    train_alone,
)
from tests.objectives import plugins

PROGRAM = Path(__file__).with_name("plugin_ranks.py")
DOCS = Path(__file__).parents[2] / "docs" / "adding-an-objective.md"
# One under its kind's name, one under a name of its own; clean and blended clips are both read.
BOTH = (
    "objectives.token_mean.weight=0.7",
    "objectives.centers.kind=center_gap",
    "objectives.centers.weight=1.5",
)
WITHOUT_OTHERS = tuple(f"objectives.{n}.weight=0" for n in ("contrast", "grounding", "temporal"))
SGD = ("optimizer.name=sgd", "optimizer.lr=0.0005")
STAGES = [(0, "boundary"), (1, "boundary"), (2, "boundary"), (2, "coalesce")]
STAGES += [(3, "coalesce"), (3, "boundary")]
CASES = {
    "both beside S-ViLM's": (*BOTH, *NOISE),
    "both alone": (*BOTH, *WITHOUT_OTHERS),
    "tokens alone": (BOTH[0], *WITHOUT_OTHERS, "video.drop.rate=0.2", "video.drop.rate_max=0.6"),
    "tokens of clean clips": (BOTH[0], "objectives.token_mean.view=clean", *NOISE),
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_the_cache_gives_the_loss_and_gradients_of_one_pass(overrides) -> None:
    config = small_config(*overrides)
    plain, model = small_model(config).double(), small_model(config).double()
    expected = plain(small_inputs())
    expected.loss.backward()
    step = CachedStep(model, small_inputs(), 5)  # 12 pairs by 5 leave a smaller last part
    step.backward()
    torch.testing.assert_close(step.output.loss, expected.loss, rtol=0, atol=1e-10)
    assert step.output.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        torch.testing.assert_close(step.output.metrics[name], value, rtol=0, atol=1e-10)
    found = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        wanted = parameter.grad
        assert (found[name].grad is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(found[name].grad, wanted, rtol=0, atol=1e-10, msg=name)
    assert found["objectives.token_mean.head.weight"].grad.any()


def test_a_local_objective_is_kept_away_from_the_cache() -> None:
    model = small_model(small_config(*BOTH))
    step = CachedStep(model, small_inputs(), 4)
    assert step.features.blended.tokens is None
    assert step.features.local is not None
    assert [value.shape[0] for value in step.features.differentiable()] == [12] * 6
    assert small_model(small_config()).embed(small_inputs()).local is None


def engine_job(overrides, stage: int, reduction: str | None = None) -> tuple[str, list[str], int]:
    cache = ["training.micro_batch=4", f"distributed.gradient_reduction={reduction}"]
    chosen = [*SGD, *overrides, f"deepspeed.zero_stage={stage}", *(cache if reduction else [])]
    return "engine", chosen, 2


def on_two_ranks(jobs, folder: Path, run_on_ranks) -> list[dict]:
    """What each rank told of each job."""
    torch.save(jobs, folder / "jobs.pt")
    run_on_ranks(2, PROGRAM, folder, timeout=1000)
    return [torch.load(folder / f"rank_{rank}.pt") for rank in range(2)]


def check_ranks(told, overrides) -> None:
    """Every job of two ranks against one process that holds the whole batch in float64."""
    model = small_model(small_config(*overrides)).double()
    expected = model(small_inputs())
    expected.loss.backward()
    exact = [rank.pop("float64") for rank in told]
    mean = torch.stack([rank["losses"] for rank in exact]).mean()
    torch.testing.assert_close(mean, expected.loss.detach(), rtol=0, atol=1e-10)
    for name, parameter in model.named_parameters():
        for rank in exact:
            torch.testing.assert_close(
                rank["gradients"][name], parameter.grad, rtol=0, atol=1e-10, msg=name
            )
    wanted = train_alone([*SGD, *overrides], 2)
    for name in told[0]:
        metrics = {
            key: sum(rank[name]["metrics"][key] for rank in told) / 2
            for key in wanted["metrics"]
            if "accuracy" not in key  # of a rank's own batch
        }
        found = told[0][name] | {"metrics": metrics}
        assert_alike(found, wanted | {"metrics": {key: wanted["metrics"][key] for key in metrics}})


def test_two_ranks_train_like_one_process(tmp_path, run_on_ranks) -> None:
    jobs = {
        "plain": engine_job(BOTH, 1),
        "coalesce": engine_job(BOTH, 1, "coalesce"),
        "float64": ("float64", BOTH, 4),
    }
    check_ranks(on_two_ranks(jobs, tmp_path, run_on_ranks), BOTH)


@pytest.mark.slow
def test_two_ranks_train_like_one_process_in_every_stage(tmp_path, run_on_ranks) -> None:
    overrides = [*BOTH, *NOISE]
    jobs = {str(case): engine_job(overrides, *case) for case in STAGES}
    jobs["float64"] = ("float64", overrides, 5)
    check_ranks(on_two_ranks(jobs, tmp_path, run_on_ranks), overrides)


@pytest.mark.slow
def test_without_a_global_objective_the_cache_changes_no_weight(tmp_path, run_on_ranks) -> None:
    overrides = [BOTH[0], *WITHOUT_OTHERS]
    jobs = {
        str(case): ("weights", engine_job(overrides, *case)[1], 3)
        for case in [(1,), (1, "coalesce"), *STAGES]
    }
    told = on_two_ranks(jobs, tmp_path, run_on_ranks)
    for rank in told:
        plain = rank.pop("(1,)")
        assert plain["losses"][2] < plain["losses"][0]
        for name, found in rank.items():
            torch.testing.assert_close(found["losses"], plain["losses"], rtol=1e-5, atol=0)
            for key, value in plain["weights"].items():
                torch.testing.assert_close(
                    found["weights"][key], value, rtol=1e-6, atol=1e-6, msg=f"{name} {key}"
                )


def test_the_settings_are_those_of_the_kind() -> None:
    objectives = small_config(*BOTH).objectives
    assert objectives.all()["token_mean"] == plugins.TokenMeanConfig(weight=0.7)
    assert objectives.all()["centers"] == plugins.CenterGapConfig(weight=1.5)
    assert "token_mean" not in small_config().objectives.all()
    assert "what" not in explain("objectives.token_mean.view")
    assert "the clips that are read" in explain("objectives.token_mean.view")
    assert explain("objectives.token_mean.weight").startswith(
        "objectives.token_mean.weight: float = 1.0"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("objectives.token_maen.weight=1", r"unknown key 'objectives.token_maen': did you mean "
         r"'objectives.token_mean'"),
        ("objectives.other.weight=1", r"'objectives.other'.*another name needs .*other.kind"),
        ("objectives.other=1", r"unknown key 'objectives.other'"),
        ("objectives.other.kind=token_men", r"no objective 'token_men': did you mean 'token_mean'"),
        ("objectives.token_mean.wieght=1", r"'objectives.token_mean.wieght'.*token_mean.weight"),
        ("objectives.other={kind: center_gap, veiw: clean}",
         r"unknown key 'objectives.other.veiw': did you mean 'objectives.other.view'"),
        ("objectives.token_mean.weight=-1", r"^objectives.token_mean.weight: .* equal to 0"),
        ("objectives.other={kind: center_gap, weight: .inf}", r"^objectives.other.weight: "),
        ("objectives.token_mean.view=crops", r"^objectives.token_mean.view: Input should be"),
        ("objectives.contrast.kind=token_mean", r"^objectives.contrast.kind: Input should be"),
        ("objectives.train={kind: center_gap}", r"'train' cannot name an objective"),
        ("objectives.active.kind=center_gap", r"'active' cannot name an objective"),
        ("objectives.training.kind=center_gap", r"'training' cannot name an objective"),
        ("objectives.token_mean=3", r"'objectives.token_mean' is a block of settings, found 3"),
    ],
)  # fmt: skip
def test_a_slip_is_refused_by_name(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        small_config(overrides)
    assert "\n" not in str(caught.value)


def test_a_kind_is_registered_once() -> None:
    register(plugins.TokenMeanConfig)
    with pytest.raises(ValueError, match="'token_mean' is registered as TokenMeanConfig"):
        register(type("Other", (plugins.TokenMeanConfig,), {}))


def test_what_only_local_objectives_can_read_is_refused() -> None:
    class Taught(plugins.CenterGapConfig):
        def reads(self):
            return replace(super().reads(), teacher=True)

    class Cropped(plugins.CenterGapConfig):
        def reads(self):
            return super().reads().of("crops", "video")

    class Sizeless(plugins.TokenMeanConfig):
        def reads(self):
            return super().reads().of("crops", "tokens")

    config = small_config()
    reasons = {
        Taught: "is global and reads a teacher",
        Cropped: "is global and reads small crops",
        Sizeless: "reads small crops without their sizes",
    }
    for kind, reason in reasons.items():
        objectives = config.objectives.model_copy()
        objectives.__pydantic_extra__ = {"new": kind()}
        with pytest.raises(ValueError, match=f"objectives.new {reason}"):
            objectives.check(config)


def test_a_dumped_configuration_reads_back_and_resumes(tmp_path: Path) -> None:
    config = small_config(*BOTH)
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(config))
    tree = read_yaml(saved)
    assert load_config(str(saved)) == RunConfig.model_validate(config.model_dump()) == config
    assert changed_settings(tree, config) == []
    assert tree["objectives"]["centers"]["kind"] == "center_gap"
    assert not [name for name in ("token_mean", "contrast") if "kind" in tree["objectives"][name]]
    other = small_config(*BOTH, "objectives.centers.weight=2")
    assert changed_settings(tree, other) == [
        "objectives.centers.weight: 1.5 -> 2.0 (changes the result)"
    ]


def test_both_are_planned(capsys) -> None:
    bare, config = small_config(), small_config(*BOTH)
    sizes = {"global_batch": 12, "num_nouns": 2}
    before, after = step_flops(bare, **sizes), step_flops(config, **sizes)
    tokens, width = config.video.num_tokens, config.video.width
    assert after.objectives.total - before.objectives.total == (
        product(12 * tokens, width, width).total
    )
    assert after.video.total > 1.5 * before.video.total  # clean clips are read too
    workload, without = (workload_of(c, 2, on_gpu=False) for c in (config, bare))
    sent = {s.part: s.calls for s in loss_traffic(workload)}
    assert sent["centers"] == 2
    assert "token_mean" not in sent
    assert workload.parameters.total - without.parameters.total == width * (width + 1) + 8
    # The local objective keeps what one micro-batch of it needs, the whole batch without cache.
    assert memory(workload, fixed_choice(config, 2, 6)).phases["forward and loss"][
        "local losses"
    ] == pytest.approx(4 * 6 * tokens * width)
    cached = small_config(*BOTH, "training.micro_batch=2")
    phases = memory(workload_of(cached, 2, on_gpu=False), fixed_choice(cached, 2, 6)).phases
    assert phases["replay"]["local losses"] == pytest.approx(4 * 2 * tokens * width)
    assert "local losses" not in phases["loss"]
    text, fits = describe(config)
    assert fits
    assert "local losses" in text
    given = ["plan", "-c", "demo", "--gpu", "h100", "--gpus", "2", "--json", *BOTH]
    assert run_app(app, given) == 0
    parts = {sent["part"] for sent in json.loads(capsys.readouterr().out)["traffic"]}
    assert "centers" in parts


def test_both_are_shown() -> None:
    metrics = small_config(*BOTH).objectives.metrics()
    values = {"loss": 1.0, "loss_token_mean": 2.0, "loss_centers": 3.0, "spread_token_mean": 4.0}
    assert summary(values, True, metrics) == (
        "loss 1 | token_mean 2 | centers 3 | token_mean spread 4"
    )
    panels = {panel.title: [name for name, _ in panel.lines] for panel in panels_with(metrics)}
    assert panels["Spread of tokens"] == ["spread_token_mean"]
    assert panels["Loss parts"][-2:] == ["loss_token_mean", "loss_centers"]


def test_the_documented_example_is_the_one_that_is_tested() -> None:
    text = DOCS.read_text()
    for example in (plugins.TokenMeanConfig, plugins.TokenMean):
        assert inspect.getsource(example) in text
