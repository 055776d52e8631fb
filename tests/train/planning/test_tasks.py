"""Plans of tasks with a loss of their own: what a step keeps, against autograd's storages."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.philox import StepSeeds
from svilm_fast.evaluation.answers import MajorityBaseline
from svilm_fast.tasks.action.classes import ClassNames
from svilm_fast.tasks.action.head import ActionInputs
from svilm_fast.tasks.action.task import TrainingClasses
from svilm_fast.tasks.base import Task, task_of
from svilm_fast.tasks.localization.heads import LocalizationInputs
from svilm_fast.tasks.qa.head import QAInputs
from svilm_fast.tasks.qa.vocabulary import AnswerVocabulary, TrainingAnswers
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.plan.activations import activations
from svilm_fast.train.plan.chooser import options
from svilm_fast.train.plan.devices import GPUS
from svilm_fast.train.plan.links import links_of
from svilm_fast.train.plan.memory import memory
from svilm_fast.train.plan.report import make_plan, text
from svilm_fast.train.plan.workload import workload_of

SMALL = (
    "model.preset=small",
    "video.frames=4",
    "video.num_segments=2",
    "video.depth=2",
    "text.depth=1",
)
CLIPS, NAMES = 4, tuple(f"name {number}" for number in range(50))
FIFTY = f"task.classes=[{','.join(NAMES)}]"
GTAD = ("task.head=gtad", "task.labels=external", "task.length=40", "task.gtad.width=64")


def task_for(config: RunConfig) -> Task:
    """A task that knows 50 answers or classes without data."""
    task: Any = task_of(config)
    if config.task.name == "qa":
        known = MajorityBaseline({}, NAMES[0])
        task._answers = TrainingAnswers(AnswerVocabulary(NAMES), known, 50, 50, 50, 0)
    elif config.task.name == "action":
        task._classes = TrainingClasses(ClassNames(NAMES), 50)
    return task


def inputs_of(config: RunConfig) -> Any:
    video, seeds = config.video, StepSeeds(0, 0, torch.arange(CLIPS))
    if config.task.name == "localization":
        steps = config.task.length
        segments = torch.tensor([[1.0, 5.0], [steps / 2, steps - 2.0]])
        return LocalizationInputs(
            torch.randn(CLIPS, steps, config.task.width),
            torch.ones(CLIPS, steps, dtype=torch.bool),
            [segments] * CLIPS,
            [torch.tensor([0, 1])] * CLIPS,
            seeds,
        )
    frames = torch.zeros((CLIPS, video.frames, video.image_size, video.image_size, 3)).byte()
    if config.task.name == "action":
        return ActionInputs(frames, torch.arange(CLIPS), seeds)
    asked, length = config.task.questions_per_clip, config.data.tokenizer.length
    tokens = torch.ones((CLIPS, asked, length), dtype=torch.int64)
    labels = torch.zeros((CLIPS, asked), dtype=torch.int64)
    return QAInputs(frames, tokens, tokens.bool(), labels, seeds)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("qa", ["training.precision=fp32"]),
        ("qa", ["training.precision=bf16_autocast", "task.questions_per_clip=8", "task.layers=3"]),
        ("qa", ["training.precision=bf16_autocast", "video.lock=true"]),
        ("qa", ["training.precision=fp32", "model.attention=reference"]),
        ("action", ["training.precision=fp32"]),
        ("action", ["training.precision=bf16_autocast", "task.features=embedding"]),
        ("localization", ["training.precision=fp32", FIFTY]),
        ("localization", ["training.precision=fp32", "task.labels=external", "task.length=192"]),
        ("localization", ["training.precision=bf16_autocast", FIFTY]),
        ("localization", ["training.precision=fp32", *GTAD]),
        ("localization", ["training.precision=bf16_autocast", *GTAD]),
    ],
)
def test_the_estimate_is_what_a_step_keeps(monkeypatch, name: str, more: list[str]) -> None:
    batch = f"training.global_batch={CLIPS}"
    config = load_config(f"tasks/{name}", [*SMALL, batch, *more])
    task = task_for(config)
    monkeypatch.setattr("svilm_fast.train.plan.workload.task_of", lambda config: task)
    torch.manual_seed(0)
    model, inputs = task.model().train(), inputs_of(config)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    stored = getattr(inputs, "frames", None)
    stored = inputs.features if stored is None else stored
    own |= {stored.untyped_storage()._cdata}
    packed: dict[int, weakref.ref] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        packed[storage._cdata] = weakref.ref(storage)
        return tensor

    half = config.training.precision == "bf16_autocast"
    with (
        saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        loss = model(inputs).loss
    storages = [kept() for key, kept in packed.items() if key not in own]
    saved = sum(storage.nbytes() for storage in storages if storage is not None)
    loss.backward()
    workload = workload_of(config, 1, on_gpu=False)
    passed = activations(workload, CLIPS, checkpoint_video=False, checkpoint_text=False)
    (head,) = workload.costs()
    assert passed.total + head.cost.kept == pytest.approx(saved, rel=0.2)
    flops = workload.flops
    assert flops.total == task.flops().total
    assert flops.objectives == head.cost.flops
    assert (flops.text.total == 0) is (name != "qa")
    assert (flops.video.total == 0) is (name == "localization")


def test_no_micro_batch_is_planned_where_there_is_no_gradient_cache(monkeypatch) -> None:
    batch = f"training.global_batch={CLIPS}"
    config = load_config("tasks/qa", [*SMALL, batch, "training.micro_batch=auto"])
    monkeypatch.setattr("svilm_fast.train.plan.workload.task_of", task_for)
    workload = workload_of(config, 1, on_gpu=False)
    assert {choice.micro_batch for choice in options(workload)} == {None}
    config = load_config("tasks/qa", [*SMALL, batch, "training.micro_batch=2"])
    with pytest.raises(ConfigError, match="no gradient cache"):
        workload_of(config, 1, on_gpu=False)


def test_a_head_on_stored_features_is_planned_without_towers(monkeypatch) -> None:
    config = load_config("tasks/localization", ["deepspeed.zero_stage=auto", FIFTY])
    workload = workload_of(config, 2, on_gpu=True)
    made = make_plan(workload, GPUS["h100"], links_of(GPUS["h100"], None, 8), 80e9)
    told = text(made)
    assert made.problem is None
    assert f"head         {workload.parameters.total:,}\n" in told
    assert "MiB of stored features" in told
    assert "videos/s" in told
    assert not any(word in told for word in ("clips as uint8", "pairs", "video tokens"))
    found = memory(workload, made.choice)
    settings = config.task
    assert found.resting["stored features"] == 4 * settings.length * settings.width * 4
    whole = workload.costs()[0].cost.kept
    assert found.phases["forward and loss"]["local losses"] == whole
    assert workload.with_batch(16, 2).costs()[0].cost.kept == pytest.approx(2 * whole)
