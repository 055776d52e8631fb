"""Retrieval with the settings of a run, during the run and after it."""

from __future__ import annotations

import re
from typing import Any

import torch

from svilm_fast.core.errors import UserError
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.evaluation import RetrievalResult
from svilm_fast.evaluation.retrieval import evaluate_dataset
from svilm_fast.train.config.schema import RunConfig

RESULT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,99}")

SPLITS = ("train", "val", "test")


def evaluation_data(config: RunConfig, split: str, tokenizer: Tokenizer) -> ClipDataset:
    """Open the clips of a split in evaluation view, captions as `evaluation.captions` says.

    Raises UserError when the configuration names no data for the split.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    if getattr(config.data, split) is None:
        raise UserError(
            f"data.{split} is not set; give the evaluation clips with data.{split}=<shards or list>"
        )
    data = config.data
    if config.evaluation.captions is not None:
        data = data.model_copy(update={"captions": config.evaluation.captions})
    return ClipDataset(
        data,
        split,
        tokenizer,
        train=False,
        frames=config.video.frames,
        image_size=config.video.image_size,
        nouns=config.objectives.reads().nouns,
    )


def check_result_name(name: str) -> None:
    """Raise UserError for a name that could leave the run's evaluation folder."""
    if not RESULT_NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r} cannot name files in evaluation/; use up to 100 letters, digits and "
            "_ . + "
            "= @ -, and begin with a letter, a digit or _"
        )


def result_name(text: str) -> str:
    """Return `text` with every character that a result's name cannot have as `_`."""
    return re.sub(r"[^A-Za-z0-9_.+=@-]", "_", text)[:100]


def autocast_dtype(config: RunConfig) -> torch.dtype | None:
    """Return the dtype of mixed precision that the run trains with, None for fp32."""
    return None if config.training.precision == "fp32" else torch.bfloat16


def evaluate(
    encoder: Any, dataset: ClipDataset, config: RunConfig, device: torch.device, **options: Any
) -> RetrievalResult:
    """Rank captions and clips with a dual encoder; `options` go to `evaluate_dataset`."""
    settings: dict[str, Any] = {
        "protocol": f"{dataset.split} split, {dataset.config.captions} captions",
        "batch_size": config.evaluation.batch_size,
        "max_clips": config.evaluation.max_clips,
        "autocast": autocast_dtype(config),
    }
    return evaluate_dataset(encoder, dataset, device=device, **(settings | options))
