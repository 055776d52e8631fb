"""Groups, nouns and segments of a few clips as a model sees them, in plain arrays for pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.clip import Clip
from svilm_fast.data.cut_paste import CutPaste, cut_and_paste
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.errors import DataError
from svilm_fast.evaluation.embed import VideoTextModel, device_of, evaluation_mode
from svilm_fast.evaluation.pointing import (
    NounPointing,
    encode_batch_nouns,
    has_masks,
    point_in_batch,
)
from svilm_fast.models.features import VideoFeatures
from svilm_fast.models.token_groups import group_grid, noun_weights

log = logging.getLogger(__name__)

TemporalHead = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BlendedProbe:
    """A cut-and-pasted clip as a model reads it.

    frames: uint8 [F, H, W, 3]; own: bool [T], the paste mask (True: own content); assignment: float
    [T, 2], probabilities of (own, pasted); similarity, untrained_similarity: float [T, T] cosine
    similarity of the segments, after and before training.
    """

    frames: np.ndarray
    own: np.ndarray
    assignment: np.ndarray
    similarity: np.ndarray
    untrained_similarity: np.ndarray | None = None


@dataclass(frozen=True)
class ClipProbe:
    """One clip as a model in evaluation mode reads it; the source of every picture of a clip.

    frames: uint8 [F, H, W, 3]; groups: int [P, h, w], the group of each token after the last
    grouping block (-1 where a token was dropped), or None for a model without groups; nouns: the
    texts of K nouns; noun_weights: float [K, G], softmax over the groups (rows sum to 1).
    clean: float [T, T] cosine similarity of the segments; blended: None without two clips or two
    segments; pointing: for each noun whose object is known, whether its group lies on that object.
    """

    caption: str
    frames: np.ndarray
    groups: np.ndarray | None
    num_groups: int
    nouns: tuple[str, ...]
    noun_weights: np.ndarray
    clean: np.ndarray
    blended: BlendedProbe | None = None
    pointing: Mapping[str, NounPointing | None] = field(default_factory=dict)


def spread_clips(dataset: ClipDataset, count: int) -> list[Clip]:
    """Read `count` evenly spread clips of a data set, in evaluation view.

    Other clips replace those that cannot be read. Raises ValueError if none can be read.
    """
    total = len(dataset)
    spread = [place * total // max(1, count) for place in range(min(count, total))]
    order = dict.fromkeys([*spread, *range(total)])
    clips: list[Clip] = []
    for index in order:
        if len(clips) == min(count, total):
            break
        try:
            clips.append(dataset.clip(index, None))
        except DataError as error:
            log.warning("clip left out of the report: %s: %s", dataset.ids[index], error)
    if not clips:
        raise ValueError(f"no clip of the {dataset.split} split can be read for the report")
    return clips


@torch.no_grad()
def probe_clips(
    model: VideoTextModel,
    batch: ClipBatch,
    *,
    beta: float = 10.0,
    temperature: float = 0.1,
    temporal_head: TemporalHead | None = None,
    seed: int = 0,
    paste_lengths: tuple[float, float] = (0.5, 1.0),
    untrained: VideoTextModel | None = None,
) -> list[ClipProbe]:
    """Run a dual encoder over a few clips, unchanged and cut-and-pasted.

    beta: sharpness of the nouns' softmax over groups. temperature: of the temporal assignment to
    two centres. temporal_head: from segments [b, T, D] and their mask [b, T] to the logits [b, T]
    of being the clip's own; replaces the two centres. seed: of the partners and intervals of
    cut-and-paste. paste_lengths: shortest and longest share of a clip that stays its own.
    untrained: a model with initial weights, for its similarities.
    """
    device = device_of(model)
    frames = batch.frames.to(device)
    with evaluation_mode(model):
        clean = model.encode_video(frames, None)
        nouns = encode_batch_nouns(model, batch, device)
    blended: Sequence[BlendedProbe | None] = [None] * len(batch)
    pasted = _cut_and_paste(frames, batch, clean, seed, paste_lengths)
    if pasted is not None:
        blended = _blended_probes(model, untrained, pasted, temperature, temporal_head)
    groups = group_grid(clean)
    weights = noun_weights(clean.groups, nouns, beta)
    pointing: list[dict[str, NounPointing | None]] = [{} for _ in batch.ids]
    known = len(batch.metadata) == len(batch) and all(map(has_masks, batch.metadata))
    if known and groups is not None and weights is not None:
        pointing = point_in_batch(batch, groups, weights.argmax(axis=-1))
    probes = []
    for row in range(len(batch)):
        kept = batch.noun_mask[row].nonzero()[:, 0].tolist() if weights is not None else []
        probes.append(
            ClipProbe(
                caption=batch.captions[row],
                frames=batch.frames[row].numpy(),
                groups=None if groups is None else groups[row],
                num_groups=0 if clean.groups is None else clean.groups.shape[1],
                nouns=tuple(batch.nouns[row][k] for k in kept),
                noun_weights=np.zeros((0, 0)) if weights is None else weights[row, kept],
                clean=similarity(clean, row),
                blended=blended[row],
                pointing=pointing[row],
            )
        )
    return probes


def temporal_assignment(segments: Tensor, own: Tensor, temperature: float) -> Tensor:
    """a = softmax(<z, [z^own ; z^pasted]> / temperature): [T, D] and bool [T] to float [T, 2].

    The columns are own, pasted. The centres are the means of the clip's own and of the pasted
    segments. If the clip has only one kind, every row is (1, 0) or (0, 1).
    """
    z = segments.float()
    if bool(own.all()) or not bool(own.any()):
        return torch.stack([own.float(), (~own).float()], dim=1)
    centres = torch.stack([z[own].mean(0), z[~own].mean(0)])
    return (z @ centres.T / temperature).softmax(dim=1)


def similarity(features: VideoFeatures, row: int) -> np.ndarray:
    """Cosine similarity of every pair of segments of one clip: float [T, T]."""
    if features.segments is None:
        raise ValueError("the features hold no segments: encode with VideoOutputs(segments=True)")
    z = F.normalize(features.segments[row].float().cpu(), dim=-1)
    return (z @ z.T).numpy()


def _cut_and_paste(
    frames: Tensor,
    batch: ClipBatch,
    features: VideoFeatures,
    seed: int,
    lengths: tuple[float, float],
) -> CutPaste | None:
    if features.segments is None or features.segments.shape[1] < 2 or len(frames) < 2:
        return None
    seeds = StepSeeds(seed, 0, batch.keys.to(frames.device)).at(Site.CUT_PASTE)
    per_position = frames.shape[1] // features.grid[0]
    shortest, longest = lengths
    segments = features.segments.shape[1]
    return cut_and_paste(frames, seeds, segments, per_position, shortest=shortest, longest=longest)


def _blended_probes(
    model: VideoTextModel,
    untrained: VideoTextModel | None,
    pasted: CutPaste,
    temperature: float,
    head: TemporalHead | None,
) -> list[BlendedProbe]:
    with evaluation_mode(model):
        features = model.encode_video(pasted.blended, None)
    assert features.segments is not None
    if head is None:
        pairs = zip(features.segments, pasted.paste_mask, strict=True)
        assignments = torch.stack([temporal_assignment(z, own, temperature) for z, own in pairs])
    else:
        assert features.segment_mask is not None
        own_share = head(features.segments, features.segment_mask).float().sigmoid()
        assignments = torch.stack([own_share, 1 - own_share], dim=-1)
    before = None
    if untrained is not None:
        with evaluation_mode(untrained):
            before = untrained.encode_video(pasted.blended, None)
    return [
        BlendedProbe(
            frames=pasted.blended[row].cpu().numpy(),
            own=pasted.paste_mask[row].cpu().numpy(),
            assignment=assignments[row].cpu().numpy(),
            similarity=similarity(features, row),
            untrained_similarity=None if before is None else similarity(before, row),
        )
        for row in range(len(assignments))
    ]
