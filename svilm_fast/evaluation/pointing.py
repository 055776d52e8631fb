"""The pointing game for groups: does the group that a noun attends to lie on the noun's object?

Zhang et al., "Top-down Neural Attention by Excitation Backprop" (arXiv 1608.00507), section 4.1: an
attention map is a hit if its maximum lies on the object, and the score is the share of hits. Every
token belongs to one group, so the attention map of a group is a mask, and its maximum is a tie of
the group's tokens. Ties count in expectation: a noun scores the share of its group's tokens that
lie on the object.
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
from svilm_fast.models.token_groups import NO_GROUP, group_grid

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

    score: share of the attention maxima that lie on the object. chance: the score of a token drawn
    at random, which is the share of the tokens that lie on the object. nouns: the number of scored
    nouns. too_small: nouns left out because their object covers a quarter of no token.
    """

    score: float
    chance: float
    nouns: int
    too_small: int

    @classmethod
    def of(cls, found: Iterable[NounPointing | None]) -> PointingScore:
        """Average single nouns (None: the object is too small); raises ValueError without any."""
        every = list(found)
        scored = [noun for noun in every if noun is not None]
        if not scored:
            raise ValueError("no noun has an object that covers at least a quarter of a token")
        hit = float(np.mean([noun.hit for noun in scored]))
        chance = float(np.mean([noun.chance for noun in scored]))
        return cls(hit, chance, len(scored), len(every) - len(scored))


def score_noun(groups: np.ndarray, chosen: int, on_object: np.ndarray) -> NounPointing | None:
    """Score the group that a noun attends to.

    groups: int [P, h, w], the group of each token, NO_GROUP for dropped tokens. chosen: the noun's
    group; an empty group attends to all tokens alike. on_object: bool [P, h, w], the tokens that
    lie on the object.
    Returns None if no token that was kept lies on the object.
    """
    kept = groups != NO_GROUP
    chance = on_object[kept]
    if not chance.any():
        return None
    pointed = on_object[groups == chosen]
    return NounPointing(float((pointed if pointed.size else chance).mean()), float(chance.mean()))


def has_masks(metadata: Mapping[str, Any] | None) -> bool:
    """Whether a sample's JSON has the nouns and masks of the rendered world."""
    return metadata is not None and {"nouns", "masks", "width", "height"} <= metadata.keys()


def objects_of_noun(metadata: Mapping[str, Any], noun: str) -> list[int]:
    """The numbers of the objects that a noun of a rendered clip's captions names."""
    listed = (entry for grain in metadata["nouns"].values() for entry in grain)
    return sorted({e["object"] for e in listed if e["text"] == noun and e["object"] is not None})


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

    metadata: the JSON of a sample of the rendered world. frame_index: int [F], source frames of the
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


def encode_batch_nouns(
    model: VideoTextModel, batch: ClipBatch, device: torch.device
) -> Tensor | None:
    """Embeddings of the nouns of a batch [b, K, D]; None for a batch without nouns."""
    count, nouns, length = batch.noun_tokens.shape
    if not nouns:
        return None
    mask = batch.noun_token_mask.clone()
    # Encoders may reject a sequence without tokens, which an absent noun would be.
    mask[..., 0] |= ~batch.noun_mask
    tokens = batch.noun_tokens.reshape(-1, length).to(device)
    flat = mask.reshape(-1, length).to(device)
    return model.encode_nouns(tokens, flat).reshape(count, nouns, -1)


def point_in_batch(
    batch: ClipBatch, groups: np.ndarray, best: np.ndarray
) -> list[dict[str, NounPointing | None]]:
    """Score the nouns that name an object, for every clip of a batch with masks.

    groups: int [b, P, h, w] from `group_grid`. best: int [b, K], the group that each noun attends
    to most. None: the object is too small.
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
                clip[noun] = score_noun(groups[row], int(best[row, place]), on_object)
        found.append(clip)
    return found


@torch.no_grad()
def point_clips(
    model: VideoTextModel, batch: ClipBatch, device: torch.device
) -> list[dict[str, NounPointing | None]] | None:
    """Score the nouns of every clip of a batch with a model in evaluation mode.

    Returns None without groups, nouns or masks.
    """
    if len(batch.metadata) != len(batch) or not all(map(has_masks, batch.metadata)):
        return None
    features = model.encode_video(batch.frames.to(device), None)
    nouns = encode_batch_nouns(model, batch, device)
    groups = group_grid(features)
    if groups is None or nouns is None or features.groups is None:
        return None
    scores = torch.einsum("bkd,bgd->bkg", nouns.float(), features.groups.float())
    return point_in_batch(batch, groups, scores.argmax(dim=-1).cpu().numpy())


def measure_pointing(model: VideoTextModel, batches: Iterable[ClipBatch]) -> PointingScore | None:
    """Pointing score of a model with groups over batches of the rendered world.

    Returns None without groups, nouns or masks.
    """
    device = device_of(model)
    found: list[NounPointing | None] = []
    with evaluation_mode(model):
        for batch in batches:
            clips = point_clips(model, batch, device)
            if clips is None:
                return None
            for clip in clips:
                found += clip.values()
    return PointingScore.of(found) if any(found) else None
