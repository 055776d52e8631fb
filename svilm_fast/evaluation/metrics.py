"""Retrieval ranks and their summary: R@K, median and mean rank, ties, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
CHUNK_ELEMENTS = 4_194_304
# Embeddings of one clip in batches of other sizes differ by float32's rounding, for the edges of a
# tile run through other instructions; their dot products were seen to differ by 1e-7.
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Ranks:
    """The rank of the right answer of every query.

    rank: float64 [q], 0-based: wrong answers with a higher score, plus half of those with an equal
    score (the papers' `#greater + (#equal - 1) / 2`, where #equal counts the right one too).
    ties: int64 [q], the number of wrong answers with the score of the right one, to 1e-6.
    gallery_size: the number of candidates that every query was ranked against.
    """

    rank: Tensor
    ties: Tensor
    gallery_size: int


@dataclass(frozen=True)
class RankSummary:
    """What a table shows of one retrieval direction; recalls in percent, ranks 1-based."""

    recall: dict[int, float]
    median_rank: float
    mean_rank: float
    queries: int
    gallery_size: int
    tied_queries: int
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    confidence: float = 0.95


def mid_ranks(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
    tie_tolerance: float = TIE_TOLERANCE,
) -> Ranks:
    """Rank the right answer of every query among the gallery by dot product, in float64.

    queries: [q, D]; gallery: [n, D]; query_labels: int64 [q]; gallery_labels: int64 [n].
    A candidate is right when its label equals the query's. Of several right ones the best counts
    and the others are left out, so a video with twenty captions is not punished for its own.
    At most `max(n, chunk_elements)` scores exist at any time.

    Ties take the middle of the tied places: the optimistic rank makes a collapsed model look
    perfect, the pessimistic one makes it look worse than chance.
    Raises ValueError for wrong shapes, values that are not finite, or a query without an answer.
    """
    _check_embeddings(queries, gallery, query_labels, gallery_labels)
    gallery64 = gallery.to(torch.float64)
    rank = torch.empty(len(queries), dtype=torch.float64)
    ties = torch.empty(len(queries), dtype=torch.int64)
    rows = max(1, chunk_elements // max(1, len(gallery)))
    for start in range(0, len(queries), rows):
        chunk = slice(start, start + rows)
        scores = queries[chunk].to(torch.float64) @ gallery64.T
        right = query_labels[chunk, None] == gallery_labels[None, :]
        if not bool(right.any(dim=1).all()):
            lonely = start + int((~right.any(dim=1)).nonzero()[0])
            raise ValueError(
                f"query {lonely} has no right answer in the gallery: its label "
                f"{int(query_labels[lonely])} is not among the gallery labels"
            )
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        higher = ((scores > best + tie_tolerance) & ~right).sum(dim=1)
        equal = (((scores - best).abs() <= tie_tolerance) & ~right).sum(dim=1)
        rank[chunk] = (higher + equal.to(torch.float64) / 2).cpu()
        ties[chunk] = equal.cpu()
    return Ranks(rank, ties, len(gallery))


def text_to_video_ranks(
    texts: Tensor, videos: Tensor, video_of_text: Tensor, **options: float
) -> Ranks:
    """Rank of every text's video: texts [q, D], videos [n, D], video_of_text int64 [q]."""
    labels = torch.arange(len(videos), device=video_of_text.device)
    return mid_ranks(texts, videos, video_of_text, labels, **options)  # type: ignore[arg-type]


def video_to_text_ranks(
    texts: Tensor, videos: Tensor, video_of_text: Tensor, **options: float
) -> Ranks:
    """Rank of every captioned video's best caption; arguments as in `text_to_video_ranks`.

    Videos without a caption are candidates for texts but ask nothing themselves.
    """
    captioned = torch.unique(video_of_text)
    return mid_ranks(videos[captioned], texts, captioned, video_of_text, **options)  # type: ignore[arg-type]


def top_matches(
    queries: Tensor, gallery: Tensor, count: int, *, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, Tensor]:
    """The `count` best candidates of every query: indices int64 [q, count], scores float32."""
    count = min(count, len(gallery))
    rows = max(1, chunk_elements // max(1, len(gallery)))
    found = [
        (queries[start : start + rows].float() @ gallery.float().T).topk(count, dim=1)
        for start in range(0, len(queries), rows)
    ]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def summarise(
    ranks: Ranks,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    clusters: Tensor | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankSummary:
    """Recalls, median and mean rank with percentile bootstrap intervals.

    clusters: int64 [q], queries that are drawn together (the captions of one video); each query is
    its own cluster by default. `resamples=0` leaves the intervals out.
    """
    rank = ranks.rank.numpy()
    values = _statistics(rank, recall_at)
    intervals = {}
    if resamples:
        drawn = _bootstrap(rank, clusters, recall_at, resamples, seed)
        tails = [50 * (1 - confidence), 50 * (1 + confidence)]
        low, high = np.percentile(drawn, tails, axis=0)
        intervals = {
            name: (float(lo), float(hi)) for name, lo, hi in zip(values, low, high, strict=True)
        }
    return RankSummary(
        recall={k: values[f"R@{k}"] for k in recall_at},
        median_rank=values["MedR"],
        mean_rank=values["MeanR"],
        queries=len(rank),
        gallery_size=ranks.gallery_size,
        tied_queries=int((ranks.ties > 0).sum()),
        intervals=intervals,
        confidence=confidence,
    )


def _statistics(rank: np.ndarray, recall_at: Sequence[int]) -> dict[str, float]:
    values = {f"R@{k}": 100 * float(np.mean(rank < k)) for k in recall_at}
    return {**values, "MedR": float(np.median(rank)) + 1, "MeanR": float(np.mean(rank)) + 1}


def _bootstrap(
    rank: np.ndarray,
    clusters: Tensor | None,
    recall_at: Sequence[int],
    resamples: int,
    seed: int,
) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if clusters is None:
        members = np.arange(len(rank))
    else:
        _, members = np.unique(clusters.numpy(), return_inverse=True)
    count = int(members.max()) + 1
    drawn = []
    for _ in range(resamples):
        times = np.bincount(generator.integers(0, count, size=count), minlength=count)
        sample = np.repeat(rank, times[members])
        drawn.append(list(_statistics(sample, recall_at).values()))
    return np.array(drawn)


def _check_embeddings(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor
) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"embeddings must be [q, D] and [n, D] of one width, got {tuple(queries.shape)} "
            f"and {tuple(gallery.shape)}"
        )
    if not len(queries) or not len(gallery):
        raise ValueError("nothing to rank: there are no queries or no candidates")
    if query_labels.shape != queries.shape[:1] or gallery_labels.shape != gallery.shape[:1]:
        raise ValueError(
            f"one label for each embedding, got {len(query_labels)} labels for {len(queries)} "
            f"queries and {len(gallery_labels)} for {len(gallery)} candidates"
        )
    # A NaN compares as "not higher" with everything, which would rank the right answer first.
    for name, tensor in (("query", queries), ("gallery", gallery)):
        if not bool(torch.isfinite(tensor).all()):
            broken = int((~torch.isfinite(tensor).all(dim=1)).nonzero()[0])
            raise ValueError(f"{name} embedding {broken} holds values that are not finite")
