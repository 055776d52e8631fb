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
from svilm_fast.evaluation.protocols import check_protocol
from svilm_fast.evaluation.query_bank import read_bank
from svilm_fast.evaluation.video_bank import open_video_bank
from svilm_fast.tasks.base import EvaluationRequest, TaskConfig, When
from svilm_fast.tasks.clips import autocast_dtype, evaluation_clips


@dataclass(frozen=True)
class RetrievalExtras:
    """What is measured besides retrieval, and the named protocol it must follow.

    protocol: a key of `protocols.PROTOCOLS`; the data set must have its size. set_level: among
    `set_level.SET_LEVEL`. bank: list or shards of the training captions that `qbnorm` needs; None:
    `data.train`. bank_videos: list or shards of the training videos that it needs from video to
    text; None: that direction is left out. rerank: candidates of a caption that are re-ranked by
    its nouns.
    """

    protocol: str | None = None
    set_level: tuple[str, ...] = ()
    bank: str | None = None
    bank_videos: str | None = None
    rerank: int = 0


NO_EXTRAS = RetrievalExtras()


def evaluation_data(
    config: TaskConfig, split: str, tokenizer: Tokenizer, *, nouns: bool = False
) -> ClipDataset:
    """Open the clips of a split in evaluation view, with nouns if asked or if training reads them.

    Raises UserError if the configuration has no data for the split.
    """
    nouns = nouns or config.objectives.reads().nouns
    return evaluation_clips(config, split, tokenizer, nouns=nouns)


def sharpness_of(model: Any, config: TaskConfig) -> float:
    """Return the sharpness of the softmax of nouns over groups, as trained.

    Without a trained one, it is the initial value of the configuration.
    """
    parts = getattr(getattr(model, "objectives", None), "modules_by_name", {})
    trained = {name: getattr(part, "beta", None) for name, part in parts.items()}
    values = {
        f"beta_{name}": float(beta().detach()) for name, beta in trained.items() if beta is not None
    }
    every = config.objectives.active_first().items()
    found = (objective.noun_sharpness(name, values) for name, objective in every)
    return next((sharpness for sharpness in found if sharpness is not None), 1.0)


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
    extras: RetrievalExtras = NO_EXTRAS,
    sharpness: float = 1.0,
) -> RetrievalResult:
    """Call `evaluate_dataset` with the settings of a run.

    protocol: title of the result; None: that of the protocol, or split and kind of captions.
    sharpness: of the nouns' softmax over the groups, for re-ranking.
    """
    rules = None if extras.protocol is None else check_protocol(extras.protocol, dataset)
    bank = read_bank(dataset.config, extras.bank) if "qbnorm" in extras.set_level else None
    videos = None
    if bank is not None and extras.bank_videos is not None:
        videos = open_video_bank(dataset, extras.bank_videos)
    title = f"{dataset.split} split, {dataset.config.captions} captions"
    options = RetrievalOptions(
        protocol=protocol or (rules.title if rules else title),
        rules=rules,
        set_level=extras.set_level,
        bank=bank,
        video_bank=videos,
        rerank=extras.rerank,
        sharpness=sharpness,
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

    max_clips: use only the first clips; None: all. The clips are opened on first use. extras: in
    training, only the protocol among them is used.
    """

    config: TaskConfig
    tokenizer: Tokenizer
    split: str
    max_clips: int | None
    name: str = "retrieval"
    extras: RetrievalExtras = NO_EXTRAS

    @property
    def file_name(self) -> str:
        return self.split

    @property
    def when(self) -> When:
        return When(self.config.evaluation.every_steps, self.config.evaluation.at_end)

    @cached_property
    def dataset(self) -> ClipDataset:
        nouns = self.extras.rerank > 0
        return evaluation_data(self.config, self.split, self.tokenizer, nouns=nouns)

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
            extras=RetrievalExtras(self.extras.protocol) if request.in_training else self.extras,
            sharpness=sharpness_of(model, self.config),
        )
