"""Action recognition as a task: data, model, evaluation and page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from svilm_fast.core.errors import UserError
from svilm_fast.core.philox import StepSeeds
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.models.activation_cost import FP32
from svilm_fast.models.flops import product
from svilm_fast.models.precision import ElementSizes
from svilm_fast.models.tubelet_embedding import MASK_TOKEN
from svilm_fast.objectives.base import Metric
from svilm_fast.objectives.features import Reads
from svilm_fast.tasks.action.classes import (
    DEFAULT_FIELD,
    ClassNames,
    field_of,
    label_of,
    labels_in,
)
from svilm_fast.tasks.action.evaluation import ActionEvaluator
from svilm_fast.tasks.action.head import ActionClassifier, ActionInputs
from svilm_fast.tasks.action.settings import ActionSettings
from svilm_fast.tasks.base import (
    InitialWeights,
    RankPlace,
    ReportRequest,
    Task,
    TaskConfig,
)
from svilm_fast.tasks.clips import evaluation_clips, training_clips
from svilm_fast.tasks.head_cost import HeadCost
from svilm_fast.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from svilm_fast.report.page import PageContent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingClasses:
    """The classes of the training split, and how many videos it has."""

    names: ClassNames
    videos: int


class ActionRecognition(Task):
    """One label for a video, from a linear head on the video tower."""

    Settings: ClassVar[type[TaskSettings]] = ActionSettings

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self._classes: TrainingClasses | None = None

    @property
    def settings(self) -> ActionSettings:
        """Return the block `task`."""
        assert isinstance(self.config.task, ActionSettings)
        return self.config.task

    @property
    def classes(self) -> TrainingClasses:
        """The classes of the run, or else of its training data."""
        if self._classes is None:
            self._classes = self._read(open_split(self.config.data, "train", nouns=False))
        return self._classes

    def dataset(
        self, split: str, tokenizer: Tokenizer, *, train: bool, table: SampleTable | None = None
    ) -> ClipDataset:
        if not train:
            return evaluation_clips(self.config, split, tokenizer, nouns=False)
        indexed = self.settings.label_field == DEFAULT_FIELD
        clips = training_clips(
            self.config,
            split,
            tokenizer,
            nouns=False,
            table=table,
            metadata=not indexed,
            annotations=indexed,
        )
        self._classes = self._read(clips.table)
        if not dist.is_initialized() or dist.get_rank() == 0:
            names = self._classes.names
            log.info(
                "%d classes (SHA-256 %s) of %d training videos",
                len(names),
                names.sha256[:16],
                self._classes.videos,
            )
        return clips

    def inputs(self, batch: ClipBatch, step: int, place: RankPlace) -> ActionInputs:
        batch_labels = self.labels(batch)
        batch = batch.to(place.device)
        seeds = StepSeeds(self.config.run.seed, step, batch.keys)
        return ActionInputs(batch.frames, batch_labels.to(place.device), seeds)

    def labels(self, batch: ClipBatch) -> Tensor:
        """Return the class of each training clip, int64 [b]."""
        field = self.settings.label_field
        values: Sequence[Any] = batch.labels
        if field != DEFAULT_FIELD:
            values = [field_of(record, field) for record in batch.metadata]
        labels = [label_of(each, name, field) for each, name in zip(values, batch.ids, strict=True)]
        return torch.tensor([self.classes.names.index[label] for label in labels])

    def model(self) -> ActionClassifier:
        return ActionClassifier(self.config, self.settings, len(self.classes.names))

    def head_cost(self, precision: ElementSizes) -> HeadCost:
        """Return the cost of the linear head; the text tower does not run."""
        pooled = self.settings.features == "pooled"
        width = self.config.video.width if pooled else self.config.model.embed_dim
        classes = len(self.classes.names)
        # Input and output of the norm, with dropout once more; logits and their softmax.
        kept = FP32 * (width * (3 + (self.settings.dropout > 0)) + 2 * classes)
        return HeadCost(Reads.of("clean", "video"), product(1, width, classes), float(kept))

    def evaluators(
        self, tokenizer: Tokenizer, split: str, max_clips: int | None
    ) -> Sequence[ActionEvaluator]:
        known = self.classes
        return [
            ActionEvaluator(
                self.config, tokenizer, split, max_clips, self.settings, known.names, known.videos
            )
        ]

    def initial_weights(self) -> InitialWeights:
        """The head is new; the objectives of pre-training and other heads are left out."""
        return InitialWeights(
            may_be_new=("head.*",), may_be_missing=("objectives.*", "head.*", MASK_TOKEN)
        )

    def metrics(self) -> dict[str, Metric]:
        panel = "Accuracy in the batch, %"
        return {"accuracy_action": Metric("acc", panel, "top-1", share=True)}

    def state(self) -> dict[str, Any]:
        known = self.classes
        return {
            "label_field": self.settings.label_field,
            "classes": list(known.names.names),
            "classes_sha256": known.names.sha256,
            "training_videos": known.videos,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the classes of a run. Raises UserError for a damaged task.json."""
        names = ClassNames.restored(state)
        videos = state.get("training_videos")
        if not isinstance(videos, int):
            raise UserError("task.json is damaged: `training_videos` is not a number")
        self._classes = TrainingClasses(names, videos)

    def report(self, request: ReportRequest) -> PageContent:
        """Return accuracy by class, the confusion, examples, and curves."""
        from svilm_fast.tasks.action.page import action_page  # imports matplotlib

        return action_page(self, request)

    def _read(self, table: SampleTable) -> TrainingClasses:
        labels = labels_in(table, self.settings.label_field, self.config.data.train)
        return TrainingClasses(ClassNames.of(labels), len(labels))
