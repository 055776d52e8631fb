"""The usual views of a run's clips, for training and for evaluation."""

from __future__ import annotations

import torch

from svilm_fast.core.errors import UserError
from svilm_fast.data.config import STORED
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.data.video_embeddings import VideoEmbeddings
from svilm_fast.data.views import ONE_VIEW, Views
from svilm_fast.tasks.base import TaskConfig

SPLITS = ("train", "val", "test")


def check_split(config: TaskConfig, split: str) -> None:
    """Raise UserError for an unknown split, or one without data in the configuration."""
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    if getattr(config.data, split) is None:
        raise UserError(
            f"data.{split} is not set; give the evaluation clips with data.{split}=<shards or list>"
        )


def training_clips(
    config: TaskConfig,
    split: str,
    tokenizer: Tokenizer,
    *,
    nouns: bool,
    table: SampleTable | None = None,
    metadata: bool = False,
    annotations: bool = False,
    embeddings: int | None = None,
    teacher: int | None = None,
    views: Views = ONE_VIEW,
    codes: bool = False,
) -> ClipDataset:
    """Open the clips of a split in training view.

    metadata: batches hold the samples' JSON. annotations, embeddings, views: as in `ClipDataset`.
    With `data.video_embeddings` batches hold stored embeddings instead of frames. teacher: the
    width of `data.teacher_embeddings`, which batches hold then as `embeddings`. codes: batches hold
    compressed clips as they are stored, where `data.decompress` says so.
    """
    folder, of_teacher = config.data.video_embeddings, None
    compressed = config.data.compression != "none" and config.data.decompress == "device"
    if teacher is not None and config.data.teacher_embeddings == STORED:
        embeddings = teacher
    elif teacher is not None and config.data.teacher_embeddings is not None:
        of_teacher = VideoEmbeddings(config.data.teacher_embeddings, teacher, texts=True)
    return ClipDataset(
        config.data,
        split,
        tokenizer,
        train=True,
        frames=config.video.frames,
        image_size=config.video.image_size,
        table=table,
        seed=config.run.seed,
        nouns=nouns,
        metadata=metadata,
        annotations=annotations,
        embeddings=embeddings,
        views=views,
        instead=None if folder is None else VideoEmbeddings(folder, config.model.embed_dim),
        teacher=of_teacher,
        codes=codes and compressed and folder is None,
    )


def evaluation_clips(
    config: TaskConfig,
    split: str,
    tokenizer: Tokenizer,
    *,
    nouns: bool,
    max_clips: int | None = None,
    annotations: bool = False,
    embeddings: int | None = None,
    views: Views = ONE_VIEW,
    may_be_empty: bool = False,
) -> ClipDataset:
    """Open the clips of a split in evaluation view, with the captions of `evaluation.captions`.

    max_clips: open only the first clips; None: all. annotations, embeddings, views: as in
    `ClipDataset`. may_be_empty: a split without a usable sample is no error. Batches hold the
    samples' JSON.

    Raises UserError if the configuration has no data for the split.
    """
    check_split(config, split)
    data = config.data
    if config.evaluation.captions is not None:
        data = data.model_copy(update={"captions": config.evaluation.captions})
    table = open_split(data, split, nouns=nouns, may_be_empty=may_be_empty)
    if max_clips is not None:
        table = table.select(range(min(max_clips, len(table))))
    return ClipDataset(
        data,
        split,
        tokenizer,
        train=False,
        frames=config.video.frames,
        image_size=config.video.image_size,
        table=table,
        nouns=nouns,
        annotations=annotations,
        embeddings=embeddings,
        views=views,
    )


def autocast_dtype(config: TaskConfig) -> torch.dtype | None:
    """Return the mixed-precision dtype of the run, None for fp32."""
    return None if config.training.precision == "fp32" else torch.bfloat16
