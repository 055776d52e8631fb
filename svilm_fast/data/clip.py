"""A loaded sample, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svilm_fast.data.annotations import Annotations
from svilm_fast.data.batch import ClipBatch, ViewBatch
from svilm_fast.data.views import ClipViews


@dataclass(frozen=True)
class ClipTexts:
    """What a clip is shown with."""

    caption: str
    tokens: Tensor  # int64 [S]
    mask: Tensor  # bool [S]
    nouns: tuple[str, ...]  # at most K
    noun_tokens: tuple[Tensor, ...]  # int64 [Sn] each, of the prompt around a noun
    noun_masks: tuple[Tensor, ...]  # bool [Sn] each
    notes: tuple[str, ...]  # what was cut


@dataclass
class Clip:
    """One sample, ready for collation."""

    index: int
    shown: ClipViews  # the clip, or its V evaluation views
    texts: ClipTexts
    metadata: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    annotations: Annotations | None = None
    embedding: np.ndarray | None = None  # float32 [D]
    text_embedding: np.ndarray | None = None  # float32 [D]
    further: list[ClipViews] = field(default_factory=list)  # of each group
    palette: np.ndarray | None = None  # uint8 [256, V] of a compressed clip


def batch_of(
    clips: Sequence[Clip],
    *,
    ids: list[str],
    keys: Tensor,
    source_ids: Tensor | None = None,
    noun_shape: tuple[int, int],
    pad_id: int,
    frames: Sequence[Tensor] | None,
) -> ClipBatch:
    """Stack b clips; shapes as in ClipBatch.

    noun_shape: K and Sn. frames: uint8 [b, ...] of the clips and of each group of further views,
    where they are stacked already.
    """
    noun_tokens = torch.full((len(clips), *noun_shape), pad_id, dtype=torch.int64)
    noun_token_mask = torch.zeros(len(clips), *noun_shape, dtype=torch.bool)
    noun_mask = torch.zeros(len(clips), noun_shape[0], dtype=torch.bool)
    texts = [clip.texts for clip in clips]
    for row, each in enumerate(texts):
        for place, (tokens, mask) in enumerate(zip(each.noun_tokens, each.noun_masks)):
            noun_tokens[row, place], noun_token_mask[row, place] = tokens, mask
            noun_mask[row, place] = True
    groups = [[clip.shown, *clip.further] for clip in clips]
    shown, *further = (_stacked(list(views), n, frames) for n, views in enumerate(zip(*groups)))
    if len(clips[0].shown.crop) == 1:
        shown = ViewBatch(**{name: value[:, 0] for name, value in vars(shown).items()})
    annotations = [clip.annotations for clip in clips if clip.annotations is not None]
    palettes = [clip.palette for clip in clips if clip.palette is not None]
    embeddings = [clip.embedding for clip in clips if clip.embedding is not None]
    of_texts = [clip.text_embedding for clip in clips if clip.text_embedding is not None]
    return ClipBatch(
        frames=shown.frames,
        keys=keys,
        ids=ids,
        captions=[each.caption for each in texts],
        nouns=[list(each.nouns) for each in texts],
        text_tokens=torch.stack([each.tokens for each in texts]),
        text_mask=torch.stack([each.mask for each in texts]),
        noun_tokens=noun_tokens,
        noun_token_mask=noun_token_mask,
        noun_mask=noun_mask,
        frame_index=shown.frame_index,
        crop=shown.crop,
        flipped=shown.flipped,
        metadata=[clip.metadata for clip in clips if clip.metadata is not None],
        labels=[each.label for each in annotations],
        questions=[each.question for each in annotations],
        answers=[each.answers for each in annotations],
        embeddings=torch.from_numpy(np.stack(embeddings)) if embeddings else None,
        text_embeddings=torch.from_numpy(np.stack(of_texts)) if of_texts else None,
        source_ids=source_ids,
        views=tuple(further),
        palettes=torch.from_numpy(np.stack(palettes)) if palettes else None,
    )


def _stacked(views: Sequence[ClipViews], group: int, frames: Sequence[Tensor] | None) -> ViewBatch:
    """The views of b clips; `frames[group]` are their frames where `frames` is given."""
    return ViewBatch(
        frames=torch.stack([view.frames for view in views]) if frames is None else frames[group],
        frame_index=torch.from_numpy(np.stack([view.frame_index for view in views])),
        crop=torch.tensor([view.crop for view in views], dtype=torch.float32),
        flipped=torch.tensor([view.flipped for view in views]),
    )
