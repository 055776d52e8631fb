"""Ranks of both retrieval directions and the best matches from one float32 product.

The float32 scores decide every comparison that rounding cannot change. The others, which are near
ties, are decided in float64, so that the ranks equal those of `metrics.mid_ranks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svilm_fast.evaluation.metrics import TIE_TOLERANCE, QueryRanks, check_embeddings

CHUNK_ELEMENTS = 4_194_304
# With more near ties in a block of scores, all of it is computed in float64: gathering two rows for
# every pair costs more than the product.
_DENSE_SHARE = 1 / 64

Gather = Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class PairRanks:
    """Ranks of texts and videos against each other.

    text_to_video: of every text's video. video_to_text: of every captioned video's best caption,
    videos ascending. top_videos: int64 [q, k], the videos that fit each text best, with top_scores
    float32 [q, k].
    """

    text_to_video: QueryRanks
    video_to_text: QueryRanks
    top_videos: Tensor
    top_scores: Tensor


class _Direction:
    """Queries of one direction with the score of their best right answer, float64 [q].

    Scores outside [low, high], float32 [q], are decided by their float32 value.
    """

    def __init__(
        self, best: Tensor, norm: Tensor, best_norm: Tensor, candidate_norm: Tensor, dim: int
    ) -> None:
        self.best, self.norm, self.best_norm = best, norm, best_norm
        self.candidate_norm = candidate_norm
        largest = candidate_norm.max()
        tolerance = TIE_TOLERANCE * norm * (best_norm + largest) / 2
        # |fl(q.a) - q.a| <= D u |q| |a| with u = 2^-24 (Higham, Accuracy and Stability of Numerical
        # Algorithms, 2002, eq. 3.5); 4 u more cover rounding of embeddings and limits to float32.
        # Products below the smallest normal number have an absolute error.
        margin = tolerance + (dim + 4) * 2.0**-24 * norm * largest + dim * 2.0**-149
        self.low, self.high = (best - margin).float(), (best + margin).float()

    def tolerance(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Largest difference of scores that counts as a tie (`metrics.mid_ranks`)."""
        norms = (self.candidate_norm[candidate] + self.best_norm[query]) / 2
        return TIE_TOLERANCE * self.norm[query] * norms


def rank_pairs(
    texts: Tensor,
    videos: Tensor,
    video_of_text: Tensor,
    *,
    top: int = 5,
    part: tuple[int, int] = (0, 1),
    gather: Gather | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> PairRanks:
    """Rank texts [q, D] and videos [n, D] against each other by dot product.

    The ranks are those of `metrics.mid_ranks` in both directions, ties and tolerance included. A
    score is computed once, in float32; both directions and the best matches read it.

    Args:
        video_of_text: int64 [q], the video of every text.
        top: videos kept for each text.
        part: (rank, ranks): compare this rank's share of the texts only; needs `gather`.
        gather: returns what every rank passes, in the order of the ranks.
        chunk_elements: most scores in memory at a time (at least one row).

    Raises:
        ValueError: wrong shapes, values that are not finite, or a text whose video does not exist.
    """
    count = len(videos)
    check_embeddings(texts, videos, video_of_text, torch.arange(count))
    if not 0 <= int(video_of_text.min()) <= int(video_of_text.max()) < count:
        raise ValueError(f"video_of_text must lie in [0, {count}), the number of videos")
    comparison = _Pass(texts, videos, video_of_text, min(top, count))
    rank, ranks = part
    first, last = len(texts) * rank // ranks, len(texts) * (rank + 1) // ranks
    rows = max(1, chunk_elements // count)
    blocks = (
        comparison.block(slice(start, min(start + rows, last)))
        for start in range(first, max(last, first + 1), rows)
    )
    counts = _Counts.joined(blocks)
    if gather is not None:
        counts = _Counts.joined(gather(counts))
    captioned = torch.unique(video_of_text).cpu()
    return PairRanks(
        QueryRanks(counts.text_higher, counts.text_ties, count),
        QueryRanks(counts.video_higher[captioned], counts.video_ties[captioned], len(texts)),
        counts.top_videos,
        counts.top_scores,
    )


@dataclass
class _Counts:
    """What one rank counted: for its texts, and for all videos among its texts."""

    text_higher: Tensor
    text_ties: Tensor
    top_videos: Tensor
    top_scores: Tensor
    video_higher: Tensor
    video_ties: Tensor

    @classmethod
    def joined(cls, parts: Iterable[_Counts]) -> _Counts:
        """The parts as one; each is dropped when the next comes, since all hold every video."""
        by_text: list[tuple[Tensor, ...]] = []
        by_video: list[Tensor] = []
        for part in parts:
            by_text.append(tuple(getattr(part, name) for name in _BY_TEXT))
            counts = [getattr(part, name) for name in _BY_VIDEO]
            by_video = [a + b for a, b in zip(by_video, counts)] if by_video else counts
        return cls(*map(torch.cat, zip(*by_text)), *by_video)


_BY_TEXT = ("text_higher", "text_ties", "top_videos", "top_scores")
_BY_VIDEO = ("video_higher", "video_ties")


class _Pass:
    """One pass over blocks of scores, a block being some texts against all videos."""

    def __init__(self, texts: Tensor, videos: Tensor, owner: Tensor, top: int) -> None:
        self.owner, self.top = owner, top
        # Powers of two change no comparison and keep the float32 scores in range.
        text_scale, video_scale = _power_of_two(texts), _power_of_two(videos)
        self.texts64, self.videos64 = texts.double() / text_scale, videos.double() / video_scale
        self.texts, self.videos = self.texts64.float(), self.videos64.float()
        self.scale = text_scale * video_scale
        dim, count = videos.shape[1], len(videos)
        text_norm, video_norm = self.texts64.norm(dim=1), self.videos64.norm(dim=1)
        right = (self.texts64 * self.videos64[owner]).sum(dim=1)
        best = torch.full((count,), -torch.inf, dtype=torch.float64, device=owner.device)
        best.scatter_reduce_(0, owner, right, "amax")
        # The best caption of every video; of equal ones the first.
        leaders = torch.nonzero(right == best[owner])[:, 0].flip(0)
        place = torch.zeros(count, dtype=torch.int64, device=owner.device)
        place[owner[leaders]] = leaders
        self.by_text = _Direction(right, text_norm, video_norm[owner], video_norm, dim)
        self.by_video = _Direction(best, video_norm, text_norm[place], text_norm, dim)

    def block(self, rows: slice) -> _Counts:
        """Compare the texts `rows` with all videos."""
        scores = self.texts[rows] @ self.videos.T
        values, indices = scores.topk(self.top, dim=1)
        found = indices.cpu(), (values.double() * self.scale).float().cpu()
        text_high, video_high = self.by_text.high[rows, None], self.by_video.high
        text_low, video_low = self.by_text.low[rows, None], self.by_video.low
        higher, higher_video = _count(scores > text_high, 1), _count(scores > video_high, 0)
        near = _count(scores >= text_low, 1) - higher
        near_video = _count(scores >= video_low, 0) - higher_video
        if int(near.sum() + near_video.sum()) > _DENSE_SHARE * scores.numel():
            return self._in_float64(rows, found)
        ties, ties_video = torch.zeros_like(higher), torch.zeros_like(higher_video)
        # The right video of a text is near its own score.
        several = torch.nonzero(near > 1)[:, 0]
        some = scores[several]
        inside = (some >= text_low[several]) & (some <= text_high[several])
        self._decide(self.by_text, rows.start, several, None, inside, higher, ties)
        several = torch.nonzero(near_video > 0)[:, 0]
        some = scores[:, several]
        inside = (some >= video_low[several]) & (some <= video_high[several])
        self._decide(self.by_video, rows.start, None, several, inside, higher_video, ties_video)
        by_video = higher_video.cpu(), ties_video.cpu()
        return _Counts(higher.cpu(), ties.cpu(), *found, *by_video)

    def _decide(
        self,
        direction: _Direction,
        start: int,
        rows: Tensor | None,
        columns: Tensor | None,
        near: Tensor,
        higher: Tensor,
        ties: Tensor,
    ) -> None:
        """Decide the pairs `near` [rows, columns] in float64; add to `higher` and `ties`."""
        row, video = torch.nonzero(near, as_tuple=True)
        row = row if rows is None else rows[row]
        video = video if columns is None else columns[video]
        text = row + start
        wrong = self.owner[text] != video
        row, text, video = row[wrong], text[wrong], video[wrong]
        scores = (self.texts64[text] * self.videos64[video]).sum(dim=1)
        if columns is None:
            query, place, candidate = text, row, video
        else:
            query, place, candidate = video, video, text
        lead = scores - direction.best[query]
        tolerance = direction.tolerance(query, candidate)
        higher.index_add_(0, place, (lead > tolerance).long())
        ties.index_add_(0, place, (lead.abs() <= tolerance).long())

    def _in_float64(self, rows: slice, found: tuple[Tensor, Tensor]) -> _Counts:
        """The same as `block`, every pair in float64."""
        scores = self.texts64[rows] @ self.videos64.T
        everything = torch.arange(len(self.videos), device=scores.device)
        text = torch.arange(rows.start, rows.stop, device=scores.device)[:, None]
        right = self.owner[rows, None] == everything
        counts = []
        for lead, tolerance, dim in (
            (scores - self.by_text.best[rows, None], self.by_text.tolerance(text, everything), 1),
            (scores - self.by_video.best, self.by_video.tolerance(everything, text), 0),
        ):
            lead.masked_fill_(right, -torch.inf)
            counts.append((lead > tolerance).sum(dim=dim).cpu())
            counts.append((lead.abs() <= tolerance).sum(dim=dim).cpu())
        higher, ties, *by_video = counts
        return _Counts(higher, ties, *found, *by_video)


def _power_of_two(embeddings: Tensor) -> float:
    """The power of two nearest to the largest norm; 1 where all are zero."""
    largest = float(embeddings.double().norm(dim=1).max())
    return 2.0 ** round(math.log2(largest)) if largest else 1.0


def _count(mask: Tensor, dim: int) -> Tensor:
    """True values along a dimension, int64; four times faster than summing the mask."""
    return mask.view(torch.int8).sum(dim=dim, dtype=torch.int32).long()
