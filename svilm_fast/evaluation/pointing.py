"""The pointing game for groups: does the group that a noun attends to lie on the noun's object?

Zhang et al., "Top-down Neural Attention by Excitation Backprop" (arXiv 1608.00507), section 4.1: a
hit is an attention map whose maximum lies on the object; the score is the share of hits. Tokens are
assigned to one group each, so that the attention of a group is a mask and its maximum a tie between
the group's tokens. As everywhere in this package, a tie counts in expectation: a noun scores the
share of its group's tokens that lie on the object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.world.masks import decode_mask
from svilm_fast.evaluation.embed import VideoTextModel, device_of, evaluation_mode
from svilm_fast.models.features import VideoFeatures

NO_GROUP = -1
# A token lies on an object that covers at least this share of the token's pixels.
LEAST_COVER = 0.25


@dataclass(frozen=True)
class NounPointing:
    """One noun: the probability that its attention maximum lies on the object, and by chance."""

    hit: float
    chance: float


@dataclass(frozen=True)
class PointingScore:
    """Means over the nouns whose object is known, in [0, 1].

    score: of the attention maxima that lie on the object. chance: of pointing at a token drawn at
    random, which is the share of the tokens that lie on the object. nouns: how many were scored.
    too_small: nouns left out, because their object covers a quarter of no token.
    """

    score: float
    chance: float
    nouns: int
    too_small: int

    @classmethod
    def of(cls, found: Iterable[NounPointing | None]) -> PointingScore:
        """The mean of single nouns (None: the object is too small). ValueError without any."""
        every = list(found)
        scored = [noun for noun in every if noun is not None]
        if not scored:
            raise ValueError("no noun has an object that covers at least a quarter of a token")
        hits, chances = ([getattr(noun, name) for noun in scored] for name in ("hit", "chance"))
        return cls(
            float(np.mean(hits)), float(np.mean(chances)), len(scored), len(every) - len(scored)
        )


def score_noun(attention: np.ndarray, on_object: np.ndarray) -> NounPointing | None:
    """Score one attention map.

    attention: float or bool [P, h, w] over the tokens, NaN where a token was dropped. All maxima
    count in expectation; a map without a positive value (the mask of an empty group) is a miss.
    on_object: bool [P, h, w], the tokens that lie on the object. Returns None where no kept token
    does.
    """
    kept = ~np.isnan(attention)
    values, truth = attention[kept].astype(float), on_object[kept]
    if not truth.any():
        return None
    largest = values.max()
    hit = float(truth[values == largest].mean()) if largest > 0 else 0.0
    return NounPointing(hit, float(truth.mean()))


def group_attention(groups: np.ndarray, chosen: int) -> np.ndarray:
    """The mask of one group: int [P, h, w] to float [P, h, w], NaN where a token was dropped."""
    return np.where(groups == NO_GROUP, np.nan, (groups == chosen).astype(float))


def has_masks(metadata: Mapping[str, Any] | None) -> bool:
    """Whether a sample's json has the nouns and masks of the rendered world."""
    return metadata is not None and {"nouns", "masks", "width", "height"} <= metadata.keys()


def objects_of_noun(metadata: Mapping[str, Any], noun: str) -> list[int]:
    """The objects of the rendered world that a noun of its captions names; empty if none."""
    named = (told for grain in metadata["nouns"].values() for told in grain)
    return sorted({t["object"] for t in named if t["text"] == noun and t["object"] is not None})


def tokens_on_objects(
    metadata: Mapping[str, Any],
    objects: Sequence[int],
    *,
    frame_index: np.ndarray,
    crop: Sequence[float],
    flipped: bool,
    image_size: int,
    grid: tuple[int, int, int],
) -> np.ndarray:
    """The tokens that lie on any of the objects: bool [P, h, w].

    metadata: the json of a sample of the rendered world. frame_index: int [F], source frames of the
    clip. crop: x0, y0, x1, y1 of the view as fractions of the source frame; flipped: whether it is
    mirrored. image_size: H = W of the view in pixels. grid: (P, h, w) of the tokens.
    """
    x0, y0, x1, y1 = crop
    centres = (np.arange(image_size) + 0.5) / image_size
    columns = ((x0 + centres * (x1 - x0)) * metadata["width"]).astype(int)
    rows = ((y0 + centres * (y1 - y0)) * metadata["height"]).astype(int)
    if flipped:
        columns = columns[::-1]
    seen = np.zeros((len(frame_index), image_size, image_size), bool)
    for place, frame in enumerate(frame_index):
        for number in objects:
            runs = metadata["masks"][number][int(frame)]
            mask = decode_mask(runs, metadata["height"], metadata["width"])
            seen[place] |= mask[rows[:, None], columns]
    time, height, width = grid
    cells = seen.reshape(
        time, len(seen) // time, height, image_size // height, width, image_size // width
    )
    covered: np.ndarray = cells.mean(axis=(1, 3, 5)) >= LEAST_COVER
    return covered


def group_grid(features: VideoFeatures) -> np.ndarray | None:
    """The last grouping block's assignment on the token grid: int [b, P, h, w], -1 for dropped."""
    if not features.assignments:
        return None
    index = features.assignments[-1].index.long().cpu()
    time, height, width = features.grid
    grid = torch.full((len(index), time * height * width), NO_GROUP)
    ids = features.token_ids.cpu()
    if features.token_mask is None:
        grid.scatter_(1, ids, index)
    else:
        for row, mask in enumerate(features.token_mask.cpu()):
            grid[row, ids[row][mask]] = index[row][mask]
    return grid.reshape(-1, time, height, width).numpy()


def encode_batch_nouns(
    model: VideoTextModel, batch: ClipBatch, device: torch.device
) -> Tensor | None:
    """Embeddings of the nouns of a batch [b, K, D]; None for a batch without nouns."""
    count, nouns, length = batch.noun_tokens.shape
    if not nouns:
        return None
    mask = batch.noun_token_mask.clone()
    # An absent noun is a sequence without tokens, which an encoder need not take.
    mask[..., 0] |= ~batch.noun_mask
    tokens = batch.noun_tokens.reshape(-1, length).to(device)
    flat = mask.reshape(-1, length).to(device)
    return model.encode_nouns(tokens, flat).reshape(count, nouns, -1)


def point_in_batch(
    batch: ClipBatch, groups: np.ndarray, best: np.ndarray
) -> list[dict[str, NounPointing | None]]:
    """For every clip of a batch with masks, its nouns that name an object, and how they point.

    groups: int [b, P, h, w] as of `group_grid`. best: int [b, K], the group each noun attends to
    most. None stands for an object that is too small.
    """
    found: list[dict[str, NounPointing | None]] = []
    for row, metadata in enumerate(batch.metadata):
        clip: dict[str, NounPointing | None] = {}
        for place, noun in enumerate(batch.nouns[row]):
            objects = objects_of_noun(metadata, noun)
            if objects:
                on_object = tokens_on_objects(
                    metadata,
                    objects,
                    frame_index=batch.frame_index[row].numpy(),
                    crop=batch.crop[row].tolist(),
                    flipped=bool(batch.flipped[row]),
                    image_size=batch.frames.shape[2],
                    grid=groups.shape[1:],
                )
                clip[noun] = score_noun(
                    group_attention(groups[row], int(best[row, place])), on_object
                )
        found.append(clip)
    return found


@torch.no_grad()
def measure_pointing(
    model: VideoTextModel,
    batches: Iterable[ClipBatch],
    device: torch.device | str | None = None,
) -> PointingScore | None:
    """Pointing score of a model with groups over batches of the rendered world.

    Returns None where nothing can be scored: no groups, no nouns, no masks.
    """
    device = torch.device(device) if device is not None else device_of(model)
    found: list[NounPointing | None] = []
    with evaluation_mode(model):
        for batch in batches:
            if len(batch.metadata) != len(batch) or not all(map(has_masks, batch.metadata)):
                return None
            features = model.encode_video(batch.frames.to(device), None)
            nouns = encode_batch_nouns(model, batch, device)
            groups = group_grid(features)
            if groups is None or nouns is None or features.groups is None:
                return None
            scores = torch.einsum("bkd,bgd->bkg", nouns.float(), features.groups.float())
            best = scores.argmax(dim=-1).cpu().numpy()
            for clip in point_in_batch(batch, groups, best):
                found += clip.values()
    return PointingScore.of(found) if any(found) else None
