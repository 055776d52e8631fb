"""Re-ranking by noun grounding: the best candidates of a caption in the order of its nouns.

The score of a candidate is the similarity of the caption's nouns with the video's groups that
grounding trains (`kernels/grounding`). It needs the groups of every video, not only an embedding:
its figures are reported apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svilm_fast.core.errors import UserError
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.evaluation.embed import (
    CaptionTable,
    Embeddings,
    VideoTextModel,
    device_of,
    evaluation_mode,
)
from svilm_fast.evaluation.metrics import TIE_TOLERANCE, QueryRanks

_BATCH = 256  # nouns of one encoder call
_CHUNK_ELEMENTS = 16_777_216


@dataclass(frozen=True)
class CaptionNouns:
    """vectors: float32 [N, D] of distinct nouns. index: int64 [q, K] of each caption, -1: none."""

    vectors: Tensor
    index: Tensor


@torch.no_grad()
def encode_nouns(
    model: VideoTextModel,
    dataset: ClipDataset,
    captions: CaptionTable,
    embeddings: Embeddings,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
) -> CaptionNouns:
    """Encode the nouns of all captions, each distinct noun once, in the first prompt.

    embeddings: of the data set; its captions give the order. Raises UserError without any noun.
    """
    device = torch.device(device) if device is not None else device_of(model)
    rows = [row for name in embeddings.video_ids for row in captions.rows[name]]
    found = [captions.nouns[row][: dataset.nouns_per_caption] for row in rows]
    distinct = dict.fromkeys(noun for nouns in found for noun in nouns)
    places = {noun: place for place, noun in enumerate(distinct)}
    if not places:
        raise UserError(
            "re-ranking by nouns: the captions have no nouns; set data.nouns.extractor, and train "
            "with the grounding objective"
        )
    index = torch.full((len(found), max(map(len, found))), -1, dtype=torch.int64)
    for row, nouns in enumerate(found):
        index[row, : len(nouns)] = torch.tensor([places[noun] for noun in nouns]).long()
    names, vectors = list(places), []
    with evaluation_mode(model):
        for start in range(0, len(names), _BATCH):
            tokens, mask = dataset.prompt_tokens(names[start : start + _BATCH])
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                encoded = model.encode_nouns(tokens.to(device, torch.int64), mask.to(device))
            vectors.append(encoded.float().cpu())
    return CaptionNouns(torch.cat(vectors), index)


def rerank_by_nouns(
    ranks: QueryRanks,
    candidates: Tensor,
    embeddings: Embeddings,
    nouns: CaptionNouns,
    *,
    sharpness: float,
) -> QueryRanks:
    """Ranks of every caption's video after its candidates are ordered by the nouns.

    ranks: before. candidates: int64 [q, k], the k best videos of each caption. A caption without
    nouns, or whose video is not among its candidates, keeps its rank. Candidates whose scores
    differ by the rounding of float32 embeddings are tied.
    """
    assert embeddings.groups is not None
    higher, ties = ranks.higher.clone(), ranks.ties.clone()
    right = candidates == embeddings.video_of_text[:, None]
    rows = torch.nonzero(right.any(dim=1) & (nouns.index >= 0).any(dim=1))[:, 0]
    groups, width = embeddings.groups.shape[1:]
    size = max(1, _CHUNK_ELEMENTS // (candidates.shape[1] * groups * width))
    for chunk in rows.split(size):
        scores = noun_scores(
            embeddings.groups[candidates[chunk]], nouns.vectors, nouns.index[chunk], sharpness
        )
        own = right[chunk]
        lead = (scores - scores[own][:, None]).masked_fill_(own, -torch.inf)
        tolerance = 2 * (1 + sharpness) * TIE_TOLERANCE
        higher[chunk] = (lead > tolerance).sum(dim=1)
        ties[chunk] = (lead.abs() <= tolerance).sum(dim=1)
    return QueryRanks(higher, ties, ranks.gallery_size)


def noun_scores(groups: Tensor, vectors: Tensor, index: Tensor, sharpness: float) -> Tensor:
    """Scores [c, k] of the nouns of c captions with k candidates each, in float64.

    groups: [c, k, G, D]; vectors: [N, D]; index: int64 [c, K], -1: none. As
    `kernels.grounding.grounding_scores`, for the candidates of each caption only.
    """
    mask = index >= 0
    chosen = vectors[index.clamp(min=0)].double()
    dots = torch.einsum("cnd,ckgd->ckng", chosen, groups.double())
    pooled = ((sharpness * dots).softmax(dim=-1) * dots).sum(dim=-1)
    weights = mask.double() / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (pooled * weights[:, None]).sum(dim=-1)
