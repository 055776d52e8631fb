"""Retrieval ranks and their summary: R@K, median and mean rank, ties, bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)
CHUNK_ELEMENTS = 4_194_304
CONFIDENCE = 0.95
# Relative to the norms of the embeddings; the docstring of `mid_ranks` derives it.
TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class QueryRanks:
    """Ranks of the right answer of every query, in expectation over a random order of ties.

    higher: int64 [q], wrong answers with a higher score than the right one.
    ties: int64 [q], wrong answers with the same score (see `mid_ranks` for the tolerance).
    gallery_size: the number of candidates. failed: further queries whose right answer is no
    candidate; they come last, count towards no recall, and have the rank `last`, 0-based.
    """

    higher: Tensor
    ties: Tensor
    gallery_size: int
    failed: int = 0
    last: int = 0

    @property
    def rank(self) -> Tensor:
        """Expected rank, float64 [q + failed], 0-based: `higher + ties / 2`."""
        found = self.higher + self.ties.to(torch.float64) / 2
        return torch.cat([found, found.new_full((self.failed,), self.last)])

    def hits(self, k: int) -> Tensor:
        """Probability that the right answer is among the first k, float64 [q + failed].

        The right answer takes each of the `ties + 1` tied places with the same probability, so it
        is `clip(k - higher, 0, ties + 1) / (ties + 1)`: 0 or 1 for a query without a tie.
        """
        places = self.ties + 1
        found = torch.minimum((k - self.higher).clamp(min=0), places).to(torch.float64) / places
        return torch.cat([found, found.new_zeros(self.failed)])


@dataclass(frozen=True)
class RankSummary:
    """Figures of one retrieval direction; recalls in percent, ranks 1-based.

    Recall is the mean of `QueryRanks.hits`; median and mean are those of the expected ranks.
    failed_queries: those of `queries` whose right answer was no candidate. tied_queries: queries
    with at least one tie. intervals: (low, high) by metric name.
    """

    recall: dict[int, float]
    median_rank: float
    mean_rank: float
    queries: int
    gallery_size: int
    tied_queries: int
    failed_queries: int = 0
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    confidence: float = CONFIDENCE


def mid_ranks(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> QueryRanks:
    """Rank the right answer of every query among the gallery by dot product, in float64.

    queries: [q, D]; gallery: [n, D]; query_labels: int64 [q]; gallery_labels: int64 [n].
    A candidate is right if its label equals the query's. Of several right candidates only the best
    counts; the others neither help nor hurt. At most `max(n, chunk_elements)` scores exist at any
    time.

    Ties count in expectation over a random order of the tied candidates. The optimistic rank would
    make a collapsed model look perfect, the pessimistic rank worse than chance.

    Two scores of a query q tie if they differ by at most `TIE_TOLERANCE * |q| * (|a| + |b|) / 2`,
    where a and b are the two candidates. The tolerance covers rounding: the embedding of a clip
    depends slightly on the batch it was encoded in, because the edges of a tile are computed with
    other instructions. With a relative error of r in every embedding, a dot product q.a is wrong by
    at most 2 r |q| |a|, and a difference of two by at most 2 r |q| (|a| + |b|). The tolerance of
    1e-6 allows r = 2.5e-7, about four units of float32 rounding (6e-8); the largest difference
    measured between unit vectors was 1e-7. The norms make ranks independent of the embeddings'
    scale.

    Raises ValueError for wrong shapes, values that are not finite, or a query without an answer.
    """
    check_embeddings(queries, gallery, query_labels, gallery_labels)
    gallery64 = gallery.to(torch.float64)
    gallery_norm = gallery64.norm(dim=1)
    higher = torch.empty(len(queries), dtype=torch.int64)
    ties = torch.empty(len(queries), dtype=torch.int64)
    rows = max(1, chunk_elements // max(1, len(gallery)))
    for start in range(0, len(queries), rows):
        chunk = slice(start, start + rows)
        queries64 = queries[chunk].to(torch.float64)
        scores = queries64 @ gallery64.T
        right = query_labels[chunk, None] == gallery_labels[None, :]
        if not bool(right.any(dim=1).all()):
            unanswered = start + int((~right.any(dim=1)).nonzero()[0])
            raise ValueError(
                f"query {unanswered} has no right answer in the gallery: its label "
                f"{int(query_labels[unanswered])} is not among the gallery labels"
            )
        best, place = scores.masked_fill(~right, -torch.inf).max(dim=1, keepdim=True)
        norms = (gallery_norm + gallery_norm[place]) / 2
        tolerance = TIE_TOLERANCE * queries64.norm(dim=1, keepdim=True) * norms
        lead = (scores - best).masked_fill_(right, -torch.inf)
        higher[chunk] = (lead > tolerance).sum(dim=1).cpu()
        ties[chunk] = (lead.abs() <= tolerance).sum(dim=1).cpu()
    return QueryRanks(higher, ties, len(gallery))


def text_to_video_ranks(
    texts: Tensor,
    videos: Tensor,
    video_of_text: Tensor,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> QueryRanks:
    """Rank of every text's video: texts [q, D], videos [n, D], video_of_text int64 [q]."""
    labels = torch.arange(len(videos), device=video_of_text.device)
    return mid_ranks(texts, videos, video_of_text, labels, chunk_elements=chunk_elements)


def video_to_text_ranks(
    texts: Tensor,
    videos: Tensor,
    video_of_text: Tensor,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> QueryRanks:
    """Rank of every captioned video's best caption; arguments as in `text_to_video_ranks`.

    Videos without a caption are candidates, but no queries.
    """
    captioned = torch.unique(video_of_text)
    return mid_ranks(
        videos[captioned], texts, captioned, video_of_text, chunk_elements=chunk_elements
    )


def summarise(
    ranks: QueryRanks, *, clusters: Tensor | None = None, resamples: int = 1000
) -> RankSummary:
    """Recalls, median and mean rank with percentile bootstrap intervals.

    clusters: int64 [q + failed], equal for queries that are drawn together (the captions of one
    video); None: queries are drawn one by one. `resamples=0` omits the intervals.
    """
    hits = np.stack([ranks.hits(k).numpy() for k in RECALL_AT])
    rank = ranks.rank.numpy()
    names = [*(f"R@{k}" for k in RECALL_AT), "MedR", "MeanR"]
    values = dict(zip(names, _statistics(hits, rank), strict=True))
    intervals = {}
    if resamples:
        drawn = _bootstrap(hits, rank, clusters, resamples)
        low, high = np.percentile(drawn, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)], axis=0)
        intervals = {
            name: (float(lo), float(hi)) for name, lo, hi in zip(values, low, high, strict=True)
        }
    return RankSummary(
        recall={k: values[f"R@{k}"] for k in RECALL_AT},
        median_rank=values["MedR"],
        mean_rank=values["MeanR"],
        queries=len(ranks.ties) + ranks.failed,
        gallery_size=ranks.gallery_size,
        tied_queries=int((ranks.ties > 0).sum()),
        failed_queries=ranks.failed,
        intervals=intervals,
    )


def _statistics(hits: np.ndarray, rank: np.ndarray) -> list[float]:
    return [
        *(100 * float(np.mean(row)) for row in hits),
        float(np.median(rank)) + 1,
        float(np.mean(rank)) + 1,
    ]


def _bootstrap(
    hits: np.ndarray, rank: np.ndarray, clusters: Tensor | None, resamples: int
) -> np.ndarray:
    generator = np.random.default_rng(0)
    if clusters is None:
        members = np.arange(len(rank))
    else:
        _, members = np.unique(clusters.numpy(), return_inverse=True)
    count = int(members.max()) + 1
    drawn = []
    for _ in range(resamples):
        times = np.bincount(generator.integers(0, count, size=count), minlength=count)[members]
        drawn.append(_statistics(np.repeat(hits, times, axis=1), np.repeat(rank, times)))
    return np.array(drawn)


def check_embeddings(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor
) -> None:
    """Raise ValueError for wrong shapes, an empty side, or values that are not finite."""
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"embeddings must be [q, D] and [n, D] with the same D, got {tuple(queries.shape)} "
            f"and {tuple(gallery.shape)}"
        )
    if not len(queries) or not len(gallery):
        raise ValueError("nothing to rank: there are no queries or no candidates")
    if query_labels.shape != queries.shape[:1] or gallery_labels.shape != gallery.shape[:1]:
        raise ValueError(
            f"every embedding needs one label, got {len(query_labels)} labels for {len(queries)} "
            f"queries and {len(gallery_labels)} for {len(gallery)} candidates"
        )
    # NaN is never higher than the right answer, which would therefore rank first.
    for name, tensor in (("query", queries), ("gallery", gallery)):
        if not bool(torch.isfinite(tensor).all()):
            broken = int((~torch.isfinite(tensor).all(dim=1)).nonzero()[0])
            raise ValueError(f"{name} embedding {broken} holds values that are not finite")
