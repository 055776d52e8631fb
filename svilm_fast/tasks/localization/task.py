"""The task of temporal localization: annotated feature sequences, a head, mAP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn

from svilm_fast.core.errors import ConfigError, UserError
from svilm_fast.core.philox import StepSeeds
from svilm_fast.data.feature_files import FeatureFolder
from svilm_fast.data.formats.activitynet import (
    TemporalAnnotations,
    file_sha256,
    read_annotations,
    read_blocked,
)
from svilm_fast.data.formats.cuhk import VideoClassScores, read_class_scores
from svilm_fast.data.loader import build_loader
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.evaluation.localization import (
    ACTIVITYNET_THRESHOLDS,
    THUMOS_THRESHOLDS,
    LocalizationResult,
    localization_map,
)
from svilm_fast.models.precision import ElementSizes
from svilm_fast.objectives.base import Metric
from svilm_fast.tasks.base import (
    EvaluationRequest,
    InitialWeights,
    RankPlace,
    ReportRequest,
    Task,
    When,
)
from svilm_fast.tasks.clips import check_split
from svilm_fast.tasks.head_cost import HeadCost
from svilm_fast.tasks.localization.actionformer import ActionFormerHead
from svilm_fast.tasks.localization.cost import localization_cost
from svilm_fast.tasks.localization.gtad import GtadHead
from svilm_fast.tasks.localization.heads import HeadLosses, LocalizationHead, LocalizationInputs
from svilm_fast.tasks.localization.predict import (
    ANY,
    Evaluated,
    Videos,
    check_classes,
    predicted_segments,
)
from svilm_fast.tasks.localization.sequences import SequenceBatch, SequenceDataset
from svilm_fast.tasks.localization.settings import LocalizationSettings

if TYPE_CHECKING:
    from svilm_fast.report.page import PageContent


class Localizer(nn.Module):
    """A head on stored features."""

    def __init__(self, settings: LocalizationSettings, classes: int) -> None:
        super().__init__()
        self.head: LocalizationHead
        if settings.head == "gtad":
            self.head = GtadHead(settings.gtad, settings.width, settings.length)
        else:
            self.head = ActionFormerHead(settings.actionformer, settings.width, classes)

    def forward(self, inputs: LocalizationInputs) -> HeadLosses:
        """The loss of a rank's batch."""
        return self.head.losses(inputs)


@dataclass(frozen=True)
class LocalizationEvaluator:
    """mAP on the annotated videos of a split.

    Videos without features are counted: their annotations are missed, and they are listed.
    """

    task: Localization
    dataset: SequenceDataset
    name: str = "localization"

    @property
    def file_name(self) -> str:
        """Beginning of the result files' names."""
        return f"localization_{self.dataset.split}"

    @property
    def when(self) -> When:
        """As the block `evaluation` says."""
        settings = self.task.config.evaluation
        return When(settings.every_steps, settings.at_end)

    def run(self, model: Any, request: EvaluationRequest) -> LocalizationResult:
        """Predict every video; in training each rank predicts a part."""
        return self.evaluate(model, request).result

    def predictions(self, model: Any, request: EvaluationRequest) -> Videos:
        """The predictions of every video, on all ranks."""
        shared = request.in_training and dist.is_initialized()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        settings, data = self.task.settings, self.dataset
        size = self.task.config.evaluation.batch_size
        found: Videos = {}
        own = self.task.config.data.model_copy(update={"workers": 0})
        with build_loader(own, data, batch_size=size, rank=rank, world_size=ranks) as batches:
            for batch in batches:
                rows = predicted_segments(
                    model,
                    batch,
                    settings,
                    self.task.classes,
                    self.task.classifier,
                    request.device,
                )
                found.update(zip(batch.ids, rows))
        if shared:
            parts: list[Any] = [None] * ranks
            dist.all_gather_object(parts, found)
            found = {name: rows for part in parts for name, rows in part.items()}
        return found

    def evaluate(self, model: Any, request: EvaluationRequest) -> Evaluated:
        """Predictions and mAP."""
        task, settings = self.task, self.task.settings
        predictions = self.predictions(model, request)
        subset = task.annotations.subset(getattr(settings.subsets, self.dataset.split))
        seen = {video.name for video in self.dataset.videos}
        missing = set(self.dataset.missing) | (seen - set(predictions))
        # With evaluation.max_clips only the first videos are in the data set.
        truths = {
            name: [s if task.labelled else s._replace(label=ANY) for s in video.segments]
            for name, video in subset.items()
            if name in seen or name in missing
        }
        blocked = read_blocked(settings.blocked, subset) if settings.blocked else frozenset()
        result = localization_map(
            truths,
            predictions,
            thresholds=(
                THUMOS_THRESHOLDS if settings.thresholds == "thumos" else ACTIVITYNET_THRESHOLDS
            ),
            dedupe=settings.dedupe,
            blocked=blocked,
            unknown_labels="ignore",
            durations={name: video.duration for name, video in subset.items()},
            protocol={
                "annotations_file": Path(str(settings.annotations)).name,
                "annotations_sha256": task.annotations.sha256[:16],
                "subset": getattr(settings.subsets, self.dataset.split),
                "bad_segments": settings.bad_segments,
                **task.annotations.notes,
                "classifier": task.classifier_name,
                "head": settings.head,
                "blocked_list": None if not settings.blocked else Path(settings.blocked).name,
                "blocked_sha256": (
                    None if not settings.blocked else file_sha256(settings.blocked)[:16]
                ),
                "videos_without_features": sorted(missing),
            },
            name=self.name,
        )
        return Evaluated(predictions, result, subset, task.labelled)


class Localization(Task):
    """Temporal localization on stored features of whole videos."""

    Settings: ClassVar[type[LocalizationSettings]] = LocalizationSettings

    @property
    def settings(self) -> LocalizationSettings:
        """The block `task`."""
        assert isinstance(self.config.task, LocalizationSettings)
        return self.config.task

    @cached_property
    def annotations(self) -> TemporalAnnotations:
        """Of the file that the settings name."""
        if self.settings.annotations is None:
            raise ConfigError("task.annotations is not set: give a file of ActivityNet JSON")
        path = self.settings.annotations
        return read_annotations(path, bad_segments=self.settings.bad_segments)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The labels of the training subset, in the order of the file; or those of the run."""
        return self.settings.classes or self.annotations.classes(self.settings.subsets.train)

    @cached_property
    def features(self) -> dict[str, Any]:
        """How the training's features were extracted; empty where that is not known."""
        where = self.config.data.train
        return FeatureFolder(Path(where)).manifest() if isinstance(where, str) else {}

    def state(self) -> dict[str, Any]:
        """The classes, and the extraction of the features: a raw video needs both."""
        return {"classes": list(self.classes), "features": self.features}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over classes and extraction of a run. Raises UserError for a damaged task.json."""
        classes, features = state.get("classes"), state.get("features")
        texts = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        if not texts or not isinstance(features, dict):
            raise UserError("task.json is damaged: it needs `classes` and `features`")
        assert isinstance(classes, list)
        # cached_property: these are now the values.
        self.__dict__.update(classes=tuple(classes), features=features)

    @property
    def labelled(self) -> bool:
        """Whether predictions have the labels of the annotations."""
        return self.settings.labels == "own" or self.classifier is not None

    @cached_property
    def classifier(self) -> VideoClassScores | None:
        """Scores of the video-level classifier."""
        if self.settings.labels == "own" or self.settings.classifier is None:
            return None
        scores = read_class_scores(self.settings.classifier)
        check_classes(scores, self.classes)
        return scores

    @property
    def classifier_name(self) -> str:
        """What gives the predictions their labels, for the protocol."""
        if self.settings.labels == "own":
            return "the head's own"
        found = self.classifier
        if found is None:
            return "none: class-agnostic, every annotation counts as one class"
        rule = f"{self.settings.fusion}, top {self.settings.top_classes}"
        return f"{found.name} (sha256 {found.sha256[:16]}; {rule})"

    def samples(self, split: str) -> SampleTable | None:
        """No clips and no captions."""
        return None

    def dataset(
        self, split: str, tokenizer: Tokenizer, *, train: bool, table: SampleTable | None = None
    ) -> SequenceDataset:
        """Open the features of a split: `data.<split>` names their folder."""
        return self._open(split, train=train, max_videos=None)

    def _open(self, split: str, *, train: bool, max_videos: int | None) -> SequenceDataset:
        check_split(self.config, split)
        where = getattr(self.config.data, split)
        if not isinstance(where, str):
            raise ConfigError(f"data.{split}: give one folder of features")
        return SequenceDataset(
            self.settings,
            split,
            Path(where),
            self.annotations.subset(getattr(self.settings.subsets, split)),
            self.classes,
            train=train,
            max_videos=max_videos,
        )

    def inputs(self, batch: SequenceBatch, step: int, place: RankPlace) -> LocalizationInputs:
        """Move a batch to the device."""
        device = place.device
        return LocalizationInputs(
            batch.features.to(device, non_blocking=True),
            batch.mask.to(device),
            [torch.from_numpy(rows).to(device) for rows in batch.segments],
            [torch.from_numpy(rows).to(device) for rows in batch.labels],
            StepSeeds(self.config.run.seed, step, batch.keys.to(device)),
        )

    def model(self) -> Localizer:
        """Build the head."""
        own = self.settings.labels == "own"
        return Localizer(self.settings, len(self.classes) if own else 1)

    def head_cost(self, precision: ElementSizes) -> HeadCost:
        """Return the cost of the head; the towers do not run, and no features are read."""
        own = self.settings.labels == "own"
        return localization_cost(self.settings, len(self.classes) if own else 1, precision)

    def evaluators(
        self, tokenizer: Tokenizer, split: str, max_clips: int | None
    ) -> Sequence[LocalizationEvaluator]:
        """mAP on a split."""
        data = self._open(split, train=False, max_videos=max_clips)
        return [LocalizationEvaluator(self, data)]

    def metrics(self) -> dict[str, Metric]:
        """The parts of the loss."""
        panel = "Parts of the loss"
        names = {
            "actionformer": ("classification", "regression"),
            "gtad": ("boundary", "regression", "classification"),
        }[self.settings.head]
        return {name: Metric(name, panel, name) for name in names}

    def initial_weights(self) -> InitialWeights:
        """A head that is trained further; the encoder of the features is no part of the model."""
        return InitialWeights(may_be_new=("head.*",), may_be_missing=("*",))

    def facts(self) -> dict[str, str]:
        """The settings that decide what the figures mean."""
        labels = {
            "head": "head",
            "labels": "labels",
            "length": "steps of a video",
            "resize": "resized to them",
            "thresholds": "IoU thresholds",
            "dedupe": "duplicate rule",
        }
        inner = {"gtad": ("width", "hidden"), "actionformer": ("width", "levels", "window")}
        name = self.settings.head
        return {f"task.{key}": label for key, label in labels.items()} | {
            f"task.{name}.{key}": f"{key} of the head" for key in inner[name]
        }

    def report(self, request: ReportRequest) -> PageContent:
        """Figures, timelines of some videos, curves."""
        from svilm_fast.tasks.localization.page import page_content

        evaluated = None
        if request.split is not None:
            (evaluator,) = self.evaluators(request.tokenizer, request.split, request.max_clips)
            how = EvaluationRequest(request.device, progress=request.progress)
            evaluated = evaluator.evaluate(request.model, how)
        return page_content(request, evaluated, self.metrics())
