"""A task outside the package: which colour or shape has the object that a caption names first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.loader import build_loader
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.data.world.vocabulary import COLORS, SHAPES
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.objectives.base import Metric
from svilm_fast.tasks.base import (
    EvaluationRequest,
    InitialWeights,
    RankPlace,
    Task,
    TaskConfig,
    When,
)
from svilm_fast.tasks.clips import evaluation_clips, training_clips
from svilm_fast.tasks.settings import TaskSettings

CLASSES = {"color": tuple(COLORS), "shape": SHAPES}


class ClassificationSettings(TaskSettings):
    """What is told apart."""

    own_loss: ClassVar[bool] = True

    attribute: Literal["color", "shape"] = Field("color", description="of the first object")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the features, in training")
    every_steps: int | None = Field(
        None, ge=0, description="steps between evaluations; null: as the block evaluation says"
    )


class Inputs(NamedTuple):
    """frames: uint8 [b, F, H, W, 3]; labels: int64 [b]."""

    frames: Tensor
    labels: Tensor


class Output(NamedTuple):
    """loss: 0-dim; metrics: 0-dim, detached."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Classifier(nn.Module):
    """A linear head on the embedding of a frozen video encoder."""

    def __init__(self, config: TaskConfig, classes: int, dropout: float) -> None:
        super().__init__()
        groups = config.objectives.reads().uses_groups(config.video)
        self.encoder = DualEncoder(config.model, config.video, config.text, groups=groups)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.model.embed_dim, classes)

    def train(self, mode: bool = True) -> Classifier:
        """Leave the frozen encoder in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def logits(self, frames: Tensor) -> Tensor:
        """Return [b, classes]."""
        outputs = VideoOutputs(groups=False, segments=False)
        with torch.no_grad():
            video = self.encoder.encode_video(frames, None, outputs).video
        return self.head(self.dropout(video).to(self.head.weight.dtype))

    def forward(self, inputs: Inputs) -> Output:
        """Return the cross-entropy and the accuracy in the batch."""
        logits = self.logits(inputs.frames).float()
        loss = nn.functional.cross_entropy(logits, inputs.labels)
        right = (logits.argmax(1) == inputs.labels).float().mean()
        return Output(loss, {"accuracy_top1": right.detach()})


@dataclass(frozen=True)
class Top1:
    """Clips that were classified, and how many of them right."""

    clips: int
    right: int

    def metrics(self) -> dict[str, float]:
        """Return the percentage."""
        return {"classification/top1": 100.0 * self.right / self.clips}

    def write(self, folder: Path, name: str) -> None:
        """Write the counts."""
        folder.mkdir(parents=True, exist_ok=True)
        counts = {"clips": self.clips, "right": self.right} | self.metrics()
        (folder / f"{name}.json").write_text(json.dumps(counts) + "\n")
        (folder / f"{name}.txt").write_text(f"{self.right} of {self.clips} clips\n")


@dataclass(frozen=True)
class ClassificationEvaluator:
    """Top-1 accuracy on a split."""

    task: Classification
    dataset: ClipDataset
    name: str = "classification"

    @property
    def file_name(self) -> str:
        """Return the name of the files before the step."""
        return f"classification_{self.dataset.split}"

    @property
    def when(self) -> When:
        """Return the task's own timing, or else that of the block `evaluation`."""
        own, settings = self.task.settings.every_steps, self.task.config.evaluation
        return When(settings.every_steps, settings.at_end) if own is None else When(own, False)

    def run(self, model: Any, request: EvaluationRequest) -> Top1:
        """Classify the clips; in training every rank takes a part of them."""
        shared = request.in_training and dist.is_initialized()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        counts = torch.zeros(2, dtype=torch.int64, device=request.device)
        was_training = model.training
        model.eval()
        size = self.task.config.evaluation.batch_size
        data = self.dataset
        with build_loader(data.config, data, batch_size=size, rank=rank, world_size=ranks) as clips:
            for batch in clips:
                labels = self.task.labels(batch).to(request.device)
                with torch.no_grad():
                    found = model.logits(batch.frames.to(request.device)).argmax(1)
                counts += torch.stack([torch.tensor(len(labels)), (found == labels).sum()])
        model.train(was_training)
        if shared:
            dist.all_reduce(counts)
        return Top1(*counts.tolist())


class Classification(Task):
    """A head on frozen towers."""

    Settings: ClassVar[type[TaskSettings]] = ClassificationSettings

    @property
    def settings(self) -> ClassificationSettings:
        """Return the block `task`."""
        assert isinstance(self.config.task, ClassificationSettings)
        return self.config.task

    def labels(self, batch: ClipBatch) -> Tensor:
        """Return the class of each clip, int64 [b]."""
        classes, attribute = CLASSES[self.settings.attribute], self.settings.attribute
        first = [metadata["objects"][0][attribute] for metadata in batch.metadata]
        return torch.tensor([classes.index(value) for value in first])

    def dataset(
        self, split: str, tokenizer: Tokenizer, *, train: bool, table: SampleTable | None = None
    ) -> ClipDataset:
        """Open clips with their metadata."""
        if train:
            return training_clips(
                self.config, split, tokenizer, nouns=False, table=table, metadata=True
            )
        return evaluation_clips(self.config, split, tokenizer, nouns=False)

    def inputs(self, batch: ClipBatch, step: int, place: RankPlace) -> Inputs:
        """Move frames and labels to the device."""
        return Inputs(batch.frames.to(place.device), self.labels(batch).to(place.device))

    def model(self) -> Classifier:
        """Build encoder and head."""
        classes = len(CLASSES[self.settings.attribute])
        return Classifier(self.config, classes, self.settings.dropout)

    def evaluators(
        self, tokenizer: Tokenizer, split: str, max_clips: int | None
    ) -> Sequence[ClassificationEvaluator]:
        """Return top-1 accuracy; small splits are always read whole."""
        data = self.dataset(split, tokenizer, train=False)
        return [ClassificationEvaluator(self, data)]

    def metrics(self) -> dict[str, Metric]:
        """Show the accuracy on the progress line and on the page."""
        panel = "Accuracy in the batch, %"
        return {"accuracy_top1": Metric("acc top1", panel, "top 1", share=True)}

    def initial_weights(self) -> InitialWeights:
        """The head is new, and the objectives of pre-training are left out."""
        return InitialWeights(may_be_new=("head.*",), may_be_missing=("objectives.*",))
