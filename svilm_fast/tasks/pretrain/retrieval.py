"""Retrieval with the settings of a run, during training and afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from svilm_fast.core.errors import UserError
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.evaluation import RetrievalOptions, RetrievalResult, evaluate_dataset
from svilm_fast.tasks.base import EvaluationRequest, TaskConfig, When
from svilm_fast.tasks.clips import autocast_dtype, evaluation_clips


def evaluation_data(config: TaskConfig, split: str, tokenizer: Tokenizer) -> ClipDataset:
    """Open the clips of a split in evaluation view, with nouns if training reads them."""
    return evaluation_clips(config, split, tokenizer, nouns=config.objectives.reads().nouns)


def encoder_of(model: Any) -> Any:
    """Return the dual encoder of a model; raise UserError if it has none."""
    encoder = getattr(model, "encoder", None)
    if not all(hasattr(encoder, name) for name in ("encode_video", "encode_text")):
        raise UserError(
            f"{type(model).__name__} has no encoder of videos and texts, which retrieval needs; "
            "`svilm evaluate task` runs the evaluators of the run's own task"
        )
    return encoder


def evaluate(
    encoder: Any,
    dataset: ClipDataset,
    config: TaskConfig,
    device: torch.device,
    *,
    protocol: str | None = None,
    max_clips: int | None = None,
    keep_frames: int = 0,
    resamples: int = 1000,
    progress: bool | None = None,
    distributed: bool = False,
) -> RetrievalResult:
    """Call `evaluate_dataset` with the settings of a run.

    protocol: title of the result; None: split and kind of captions.
    """
    options = RetrievalOptions(
        protocol=protocol or f"{dataset.split} split, {dataset.config.captions} captions",
        device=device,
        autocast=autocast_dtype(config),
        keep_frames=keep_frames,
        resamples=resamples,
        progress=progress,
    )
    return evaluate_dataset(
        encoder,
        dataset,
        options,
        batch_size=config.evaluation.batch_size,
        max_clips=max_clips,
        distributed=distributed,
    )


@dataclass(frozen=True)
class RetrievalEvaluator:
    """Retrieval on a split of the run's clips; its files are named after the split.

    max_clips: use only the first clips; None: all. The clips are opened on first use.
    """

    config: TaskConfig
    tokenizer: Tokenizer
    split: str
    max_clips: int | None
    name: str = "retrieval"

    @property
    def file_name(self) -> str:
        return self.split

    @property
    def when(self) -> When:
        return When(self.config.evaluation.every_steps, self.config.evaluation.at_end)

    @cached_property
    def dataset(self) -> ClipDataset:
        return evaluation_data(self.config, self.split, self.tokenizer)

    def run(self, model: Any, request: EvaluationRequest) -> RetrievalResult:
        return evaluate(
            encoder_of(model),
            self.dataset,
            self.config,
            request.device,
            max_clips=self.max_clips,
            resamples=0 if request.in_training else 1000,
            progress=False if request.in_training else request.progress,
            distributed=request.in_training,
        )
