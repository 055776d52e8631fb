"""The interface of a task, and the registry of tasks.

The engine, the loop, checkpoints and resume call these objects and know no task by name. A task may
import models, objectives, evaluation and report, but never `svilm_fast.train`.
"""

from __future__ import annotations

import fnmatch
import importlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.plugins import TASKS_GROUP, find_plugin, load_plugin, plugin_names
from svilm_fast.objectives.config import ModelBlocks
from svilm_fast.tasks.settings import DEFAULT_TASK, EvaluationConfig, TaskSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from svilm_fast.data.config import DataConfig
    from svilm_fast.data.loadable import LoadableDataset
    from svilm_fast.data.samples import SampleTable
    from svilm_fast.data.tokenizer import Tokenizer
    from svilm_fast.models.precision import ElementSizes
    from svilm_fast.objectives.base import Alarm, Metric
    from svilm_fast.objectives.flops import StepFlops
    from svilm_fast.report.curves import Series
    from svilm_fast.report.page import PageContent
    from svilm_fast.tasks.head_cost import HeadCost

# Built-in tasks: name, and the module and class that are imported on use.
TASKS = {
    DEFAULT_TASK: "svilm_fast.tasks.pretrain.task:Pretraining",
    "retrieval": "svilm_fast.tasks.retrieval.task:Retrieval",
    "localization": "svilm_fast.tasks.localization.task:Localization",
    "action": "svilm_fast.tasks.action.task:ActionRecognition",
    "qa": "svilm_fast.tasks.qa.task:QuestionAnswering",
}


class RunBlock(Protocol):
    """The part of the block `run` that tasks read."""

    @property
    def seed(self) -> int: ...


class TrainingBlock(Protocol):
    """The part of the block `training` that tasks read."""

    @property
    def global_batch(self) -> int: ...

    @property
    def precision(self) -> str: ...


class TaskConfig(ModelBlocks, Protocol):
    """The blocks of a run's configuration that tasks read: those of the model, and these."""

    @property
    def task(self) -> TaskSettings: ...

    @property
    def run(self) -> RunBlock: ...

    @property
    def data(self) -> DataConfig: ...

    @property
    def training(self) -> TrainingBlock: ...

    @property
    def evaluation(self) -> EvaluationConfig: ...


class RankPlace(Protocol):
    """The rank that prepares a batch, and its device."""

    @property
    def rank(self) -> int: ...

    @property
    def device(self) -> torch.device: ...


class LossOutput(Protocol):
    """What a trained module's `forward` returns: a 0-dim loss and detached 0-dim metrics."""

    @property
    def loss(self) -> Tensor: ...

    @property
    def metrics(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class InitialWeights:
    """Parameters and buffers that may differ between the model and the `--weights-from` weights.

    Both are `fnmatch` patterns of dotted names (`head.*`). may_be_new: of the model, absent from
    the weights or of another shape; they keep their initial values. may_be_missing: of the weights,
    absent from the model. All others must match exactly.
    """

    may_be_new: tuple[str, ...] = ()
    may_be_missing: tuple[str, ...] = ()

    def allows_new(self, name: str) -> bool:
        """Whether the parameter `name` of the model may keep its initial value."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.may_be_new)

    def allows_missing(self, name: str) -> bool:
        """Whether the parameter `name` of the weights may be absent from the model."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.may_be_missing)


@dataclass(frozen=True)
class When:
    """When an evaluator runs in training: every `every_steps` steps (0: never), and at the end."""

    every_steps: int
    at_end: bool


@dataclass(frozen=True)
class EvaluationRequest:
    """How an evaluator is called.

    in_training: all ranks of the run call it together, without a progress bar and without the parts
    that only a final result needs (intervals). Otherwise a single process calls it. progress:
    whether to show a bar; None: only on a terminal.
    """

    device: torch.device
    in_training: bool = False
    progress: bool | None = None


class EvaluationResult(Protocol):
    """The result of an evaluator."""

    def metrics(self) -> dict[str, float]:
        """Metrics by name; every name starts with the evaluator's, as in `retrieval/t2v_R@1`."""

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.json` and `<name>.txt` into `folder`."""


class Evaluator(Protocol):
    """Measures a model on held-out clips.

    name: namespace of its metrics. file_name: the files are called `<file_name>_step_<step>`.
    dataset: the clips that it reads; a run does not ask for those of an evaluator that it never
    runs. when: when the training loop runs it, whatever the block `evaluation` says.
    """

    @property
    def name(self) -> str: ...

    @property
    def file_name(self) -> str: ...

    @property
    def dataset(self) -> LoadableDataset: ...

    @property
    def when(self) -> When: ...

    def run(self, model: Any, request: EvaluationRequest) -> EvaluationResult:
        """Measure `model`, the module that `Task.model` built."""


@dataclass(frozen=True)
class ReportRequest:
    """The inputs of a report.

    model: the trained module on `device`. split: to evaluate and draw; None: curves and facts only.
    series: the run's metrics over the steps. max_clips: evaluate only the first clips; None: all.
    clips: number of clips drawn in detail. progress: as in EvaluationRequest.
    """

    model: Any
    tokenizer: Tokenizer
    device: torch.device
    split: str | None
    series: Series
    max_clips: int | None = None
    clips: int = 4
    progress: bool | None = None


class Task(Protocol):
    """A task. Subclass it, and register the class or announce it as an entry point.

    Settings: the class of the block `task`; its unknown keys are errors.
    """

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    config: TaskConfig

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    def samples(self, split: str) -> SampleTable | None:
        """List the clips of a split; None for a task whose data are not clips.

        The run's tokenizer is trained on their captions, and `dataset` is given them.
        """
        from svilm_fast.data.samples import open_split

        return open_split(self.config.data, split, nouns=self.config.objectives.reads().nouns)

    @abstractmethod
    def dataset(
        self, split: str, tokenizer: Tokenizer, *, train: bool, table: SampleTable | None = None
    ) -> LoadableDataset:
        """Open the clips of a split, in training or in evaluation view.

        table: the samples, if they are listed already. `tasks.clips` has the usual views.
        """

    @abstractmethod
    def inputs(self, batch: Any, step: int, place: RankPlace) -> Any:
        """Return the model's inputs for a rank's whole batch, on the rank's device.

        Random numbers must be functions of (run seed, step, sample key), so that a replay of the
        step repeats them.
        """

    @abstractmethod
    def model(self) -> nn.Module:
        """Build the module to train; its `forward(inputs)` returns a LossOutput.

        Initial weights come from torch's generator. The gradient cache (`training.micro_batch`)
        needs the methods `embed` and `objective`, as SViLM has them.
        """

    @abstractmethod
    def evaluators(
        self, tokenizer: Tokenizer, split: str, max_clips: int | None
    ) -> Sequence[Evaluator]:
        """Return the evaluators for a split.

        max_clips: use only the first clips; None: all.
        """

    def initial_weights(self) -> InitialWeights:
        """Return what may differ when weights are loaded; the default: nothing."""
        return InitialWeights()

    def check_weights(self, model: nn.Module) -> None:
        """Raise UserError if the weights that a new run starts from do not fit its data.

        Called after `dataset("train", ...)`, before the engine is built. The default: all fit.
        """

    def state(self) -> dict[str, Any]:
        """Return what a finished run needs besides settings and weights, as plain JSON values.

        A run asks for it after `dataset("train", ...)`, keeps it as task.json, and refuses to
        resume if it has changed. The default: nothing.
        """
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of a run that is opened for use; called before `model`."""

    def head_cost(self, precision: ElementSizes) -> HeadCost | None:
        """Return what a task with its own loss computes of a clip; None: it cannot be planned.

        The task may read its training data for it.
        """
        return None

    def flops(self) -> StepFlops | None:
        """Return the FLOPs of a step over the global batch; None: not counted.

        The default adds `head_cost` to the FLOPs of the towers.
        """
        from svilm_fast.models.precision import ELEMENT_SIZES

        training = self.config.training
        cost = self.head_cost(ELEMENT_SIZES[training.precision])
        return None if cost is None else cost.step_flops(self.config, training.global_batch)

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics of `forward` that the progress line and the page show, in order.

        The default: those of the objectives; none for a task with a loss of its own.
        """
        return {} if self.Settings.own_loss else self.config.objectives.metrics()

    def alarms(self, step: int, values: Mapping[str, float]) -> list[Alarm]:
        """Judge the metrics of a step, which are those of all ranks.

        The default: what the objectives find; nothing for a task with a loss of its own.
        """
        if self.Settings.own_loss:
            return []
        active = self.config.objectives.active().items()
        found = (objective.alarm(name, step, values) for name, objective in active)
        return [alarm for alarm in found if alarm is not None]

    def facts(self) -> dict[str, str]:
        """Return the settings that the page lists, as dotted keys with labels.

        The default: those of the objectives; the block `task` for a task with a loss of its own.
        """
        if self.Settings.own_loss:
            return {f"task.{key}": key for key in self.Settings.model_fields}
        return {
            f"objectives.{name}.{key}": label
            for name, objective in self.config.objectives.all().items()
            for key, label in objective.facts(name).items()
        }

    def report(self, request: ReportRequest) -> PageContent:
        """Return the sections and headline figures of the run's page.

        The default shows the metrics of the evaluators and the curves.
        """
        from svilm_fast.report.page import HeadlineTile, PageContent, Section  # imports matplotlib
        from svilm_fast.report.sections import curves_section

        sections, tiles = [], []
        if request.split is not None:
            how = EvaluationRequest(request.device, progress=request.progress)
            found: dict[str, float] = {}
            for evaluator in self.evaluators(request.tokenizer, request.split, request.max_clips):
                found |= evaluator.run(request.model, how).metrics()
            lines = [f"{name}: {value:.4g}" for name, value in found.items()]
            text = f"The task's evaluators on the clips of the {request.split} split."
            sections.append(Section("Evaluation", text, notes=lines))
            tiles = [HeadlineTile(f"{value:.4g}", name) for name, value in list(found.items())[:3]]
        if request.series:
            sections.append(curves_section(request.series, self.metrics()))
        parameters = sum(parameter.numel() for parameter in request.model.parameters())
        return PageContent(sections, tiles, parameters)


def task_names() -> list[str]:
    """Return the names of the built-in tasks, then those of installed plug-ins."""
    return list(dict.fromkeys([*TASKS, *plugin_names(TASKS_GROUP)]))


def task_class(name: str) -> type[Task]:
    """Return the class of a built-in task, or of one that an installed package announces.

    The name selects among installed packages; text from a recipe, a run folder or a checkpoint is
    never imported. Raises ConfigError for an unknown name, and for a plug-in that is not a task.
    """
    if name in TASKS:
        module, _, attribute = TASKS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    point = find_plugin(TASKS_GROUP, name, "task.name")
    if point is None:
        raise ConfigError(
            f"task.name: there is no task {name!r}; tasks: {', '.join(task_names())}. A plug-in "
            "must be installed where the run starts (docs/adding-a-task.md)"
        )
    found = load_plugin(point, "task.name")
    settings = getattr(found, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, TaskSettings)):
        raise ConfigError(
            f"task.name: {name!r} ({point.value}) is not a subclass of "
            "svilm_fast.tasks.base.Task with a class attribute Settings"
        )
    return found


def task_of(config: TaskConfig) -> Task:
    """Return the task that a run's configuration names."""
    return task_class(config.task.name)(config)
