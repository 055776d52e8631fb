"""What a task is, and the registry: the only place where the engine meets what it trains.

The engine, the loop, checkpoints and resume ask these objects and know no task by name. A task may
import models, objectives, evaluation and report; it never imports `svilm_fast.train`.
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
from svilm_fast.core.plugins import find_plugin, plugin_names
from svilm_fast.tasks.settings import DEFAULT_TASK, EvaluationConfig, TaskSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from svilm_fast.data.batch import ClipBatch
    from svilm_fast.data.config import DataConfig
    from svilm_fast.data.dataset import ClipDataset
    from svilm_fast.data.samples import SampleTable
    from svilm_fast.data.tokenizer import Tokenizer
    from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
    from svilm_fast.objectives.config import ObjectivesConfig
    from svilm_fast.objectives.flops import StepFlops
    from svilm_fast.report.curves import Series
    from svilm_fast.report.page import PageContent

# One line for each built-in task: its name, and the module and class that are imported on use.
TASKS = {
    DEFAULT_TASK: "svilm_fast.tasks.pretrain.task:Pretraining",
}
# Installed packages announce further tasks in this group (docs/adding-a-task.md).
ENTRY_POINTS = "svilm_fast.tasks"


class RunBlock(Protocol):
    """What tasks read of the block `run`."""

    @property
    def seed(self) -> int: ...


class TrainingBlock(Protocol):
    """What tasks read of the block `training`."""

    @property
    def global_batch(self) -> int: ...

    @property
    def precision(self) -> str: ...


class TaskConfig(Protocol):
    """The blocks of a run's configuration that tasks read."""

    @property
    def task(self) -> TaskSettings: ...

    @property
    def run(self) -> RunBlock: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def video(self) -> VideoConfig: ...

    @property
    def text(self) -> TextConfig: ...

    @property
    def objectives(self) -> ObjectivesConfig: ...

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
    """Which parameters and buffers may differ where `--weights-from` loads weights.

    Both hold patterns of dotted names, as `fnmatch` reads them (`head.*`). may_be_new: the model's
    own that the weights lack, or hold in another shape; they keep their initial values.
    may_be_missing: of the weights, what the model lacks. The rest must fit exactly.
    """

    may_be_new: tuple[str, ...] = ()
    may_be_missing: tuple[str, ...] = ()

    def allows_new(self, name: str) -> bool:
        """Whether the parameter `name` of the model may keep its initial value."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.may_be_new)

    def allows_missing(self, name: str) -> bool:
        """Whether the model may lack the parameter `name` of the weights."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.may_be_missing)


@dataclass(frozen=True)
class When:
    """When an evaluator runs: every so many steps (0: never) and perhaps after the last one."""

    every_steps: int
    at_end: bool


@dataclass(frozen=True)
class EvaluationRequest:
    """How an evaluator is called.

    in_training: every rank of the run calls it at once, no bar is shown, and what only a final
    result needs (intervals) is left out. Otherwise one process calls it alone. progress: whether a
    bar is shown; None: on a terminal.
    """

    device: torch.device
    in_training: bool = False
    progress: bool | None = None


class EvaluationResult(Protocol):
    """What an evaluator found."""

    def metrics(self) -> dict[str, float]:
        """Numbers by name; every name starts with the evaluator's, as in `retrieval/t2v_R@1`."""

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.json` and `<name>.txt` into `folder`."""


class Evaluator(Protocol):
    """Measures a model on held-out clips.

    name: namespace of its metrics. file_name: the files are called `<file_name>_step_<step>`.
    dataset: the clips that it reads. when: when the training loop runs it.
    """

    @property
    def name(self) -> str: ...

    @property
    def file_name(self) -> str: ...

    @property
    def dataset(self) -> ClipDataset: ...

    @property
    def when(self) -> When: ...

    def run(self, model: Any, request: EvaluationRequest) -> EvaluationResult:
        """Measure `model`, the module that `Task.model` built."""


@dataclass(frozen=True)
class ReportRequest:
    """What a report is made of.

    model: the trained module on `device`. split: evaluated and drawn; None: curves and facts alone.
    max_clips: only the first so many clips are evaluated. clips: how many are looked into. series:
    the run's metrics over the steps. tree: the whole configuration as plain values. progress: as in
    EvaluationRequest.
    """

    model: Any
    tokenizer: Tokenizer
    device: torch.device
    split: str | None
    series: Series
    tree: Mapping[str, Any]
    max_clips: int | None = None
    clips: int = 4
    progress: bool | None = None


class Task(Protocol):
    """One thing to train. Subclass it, and register the class or announce it as an entry point.

    Settings: the class of the block `task`; its unknown keys are errors.
    """

    Settings: ClassVar[type[TaskSettings]] = TaskSettings
    config: TaskConfig

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @abstractmethod
    def dataset(
        self, split: str, tokenizer: Tokenizer, *, train: bool, table: SampleTable | None = None
    ) -> ClipDataset:
        """Open the clips of a split, in training or in evaluation view.

        table: the samples, where they are listed already. `tasks.clips` has the usual views.
        """

    @abstractmethod
    def inputs(self, batch: ClipBatch, step: int, place: RankPlace) -> Any:
        """What the model is given for a rank's whole batch, on the rank's device.

        Every random number must follow from (run seed, step, sample key): a replay repeats it.
        """

    @abstractmethod
    def model(self) -> nn.Module:
        """Build the module that is trained: its `forward(inputs)` returns a LossOutput.

        Draws initial weights from torch's generator. With `embed` and `objective`, as SViLM has
        them, it can be trained with a gradient cache (`training.micro_batch`).
        """

    @abstractmethod
    def evaluators(
        self, tokenizer: Tokenizer, split: str, max_clips: int | None
    ) -> Sequence[Evaluator]:
        """Open the clips of a split and return what measures the model on them.

        max_clips: only the first so many clips; None: all.
        """

    def initial_weights(self) -> InitialWeights:
        """Return what may differ where weights are loaded; the default: nothing."""
        return InitialWeights()

    def flops(self) -> StepFlops | None:
        """Return the FLOPs of a step over the global batch; None where nobody counted them."""
        return None

    def report(self, request: ReportRequest) -> PageContent:
        """Return the sections and headline figures of the run's page.

        The default shows every evaluator's figures and the curves.
        """
        from svilm_fast.report.page import (  # imports matplotlib
            HeadlineTile,
            PageContent,
            Section,
            curves_section,
        )

        sections, tiles = [], []
        if request.split is not None:
            wanted = EvaluationRequest(request.device, progress=request.progress)
            found: dict[str, float] = {}
            for evaluator in self.evaluators(request.tokenizer, request.split, request.max_clips):
                found |= evaluator.run(request.model, wanted).metrics()
            lines = [f"{name}: {value:.4g}" for name, value in found.items()]
            text = f"The task's evaluators on the clips of the {request.split} split."
            sections.append(Section("Evaluation", text, notes=lines))
            tiles = [HeadlineTile(f"{value:.4g}", name) for name, value in list(found.items())[:3]]
        if request.series:
            sections.append(curves_section(request.series, request.tree))
        parameters = sum(parameter.numel() for parameter in request.model.parameters())
        return PageContent(sections, tiles, parameters)


def task_names() -> list[str]:
    """Return the names of the built-in tasks, then those of installed plug-ins."""
    return list(dict.fromkeys([*TASKS, *plugin_names(ENTRY_POINTS)]))


def task_class(name: str) -> type[Task]:
    """Return the class of a built-in task, or of one that an installed package announces.

    A name selects among what is installed: no text of a recipe, a run folder or a checkpoint is
    ever imported. Raises ConfigError for an unknown name, and where a plug-in is no task.
    """
    if name in TASKS:
        module, _, attribute = TASKS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    point = find_plugin(ENTRY_POINTS, name, "task.name")
    if point is None:
        raise ConfigError(
            f"task.name: there is no task {name!r}; tasks: {', '.join(task_names())}. A plug-in "
            "must be installed where the run starts (docs/adding-a-task.md)"
        )
    found = point.load()
    settings = getattr(found, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, TaskSettings)):
        raise ConfigError(
            f"task.name: {name!r} ({point.value}) is no subclass of svilm_fast.tasks.base.Task "
            "with a class attribute Settings"
        )
    return found


def task_of(config: TaskConfig) -> Task:
    """Return the task that a run's configuration names."""
    return task_class(config.task.name)(config)
