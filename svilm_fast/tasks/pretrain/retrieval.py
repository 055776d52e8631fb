"""Retrieval with the settings of a run, during the run and after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svilm_fast.core.errors import UserError
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.evaluation import RetrievalOptions, RetrievalResult, write_retrieval
from svilm_fast.evaluation.retrieval import evaluate_dataset
from svilm_fast.tasks.base import EvaluationRequest, TaskConfig, When
from svilm_fast.tasks.clips import autocast_dtype, evaluation_clips


def reads_nouns(config: TaskConfig) -> bool:
    """Whether an objective reads nouns; otherwise none are extracted."""
    return config.objectives.grounding.weight > 0


def evaluation_data(config: TaskConfig, split: str, tokenizer: Tokenizer) -> ClipDataset:
    """Open the clips of a split in evaluation view; nouns where training reads them."""
    return evaluation_clips(config, split, tokenizer, nouns=reads_nouns(config))


def encoder_of(model: Any) -> Any:
    """Return the dual encoder of a model; raises UserError for one that embeds no texts."""
    encoder = getattr(model, "encoder", None)
    if not all(hasattr(encoder, name) for name in ("encode_video", "encode_text")):
        raise UserError(
            f"{type(model).__name__} has no encoder of videos and texts to rank with; "
            "`svilm evaluate task` measures a run with the evaluators of its own task"
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
    """Rank captions and clips with a dual encoder, as `evaluate_dataset` does.

    protocol: None names the split and the captions. max_clips: only the first so many clips.
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
class RetrievalFiles:
    """A result of retrieval as an evaluator returns it."""

    result: RetrievalResult

    def metrics(self) -> dict[str, float]:
        """Return recalls and ranks of both directions."""
        return self.result.metrics()

    def write(self, folder: Path, name: str) -> None:
        """Write the result and its table."""
        write_retrieval(self.result, folder, name=name)


@dataclass(frozen=True)
class RetrievalEvaluator:
    """Retrieval on a split of the run's clips; its files are named after the split."""

    config: TaskConfig
    dataset: ClipDataset
    max_clips: int | None
    name: str = "retrieval"

    @property
    def file_name(self) -> str:
        """Return the split."""
        return self.dataset.split

    @property
    def when(self) -> When:
        """Return what the block `evaluation` says."""
        return When(self.config.evaluation.every_steps, self.config.evaluation.at_end)

    def run(self, model: Any, request: EvaluationRequest) -> RetrievalFiles:
        """Rank the split with the model's encoder."""
        found = evaluate(
            encoder_of(model),
            self.dataset,
            self.config,
            request.device,
            max_clips=self.max_clips,
            resamples=0 if request.in_training else 1000,
            progress=False if request.in_training else request.progress,
            distributed=request.in_training,
        )
        return RetrievalFiles(found)
