"""Baselines of retrieval: chance, and a matcher that sees only colours."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.special import bdtr  # scipy.stats would take most of a second to import
from torch import Tensor

from svilm_fast.evaluation.metrics import CHUNK_ELEMENTS, RECALL_AT

COLOUR_RULES = ("jaccard", "containment")


@dataclass(frozen=True)
class ChanceInterval:
    """R@k of a matcher that guesses, in percent: its mean and its interval at `confidence`."""

    k: int
    expected: float
    low: float
    high: float
    confidence: float

    def __contains__(self, recall: float) -> bool:
        return self.low - 1e-9 <= recall <= self.high + 1e-9


@dataclass(frozen=True)
class ColourBaseline:
    """Expected text-to-video recall (percent) of matching colour sets, and the better rule."""

    recall: dict[int, float]
    rule: str
    colours: tuple[str, ...]
    distinct_clip_sets: int


def chance_interval(
    queries: int, gallery_size: int, k: int = 10, confidence: float = 0.999
) -> ChanceInterval:
    """The central binomial interval of R@k in percent, if every query guesses.

    Each tail outside the interval has a probability of at most `(1 - confidence) / 2`.
    """
    if queries < 1 or gallery_size < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"chance needs at least one query, one candidate and a confidence in (0, 1), got "
            f"{queries}, {gallery_size} and {confidence}"
        )
    chance = min(1.0, k / gallery_size)
    low, high = (
        bisect_left(range(queries), share, key=lambda hits: bdtr(hits, queries, chance))
        for share in ((1 - confidence) / 2, (1 + confidence) / 2)
    )
    percent = 100 / queries
    return ChanceInterval(k, 100 * chance, percent * low, percent * high, confidence)


def expected_recall(
    scores: Tensor, right: Tensor, recall_at: Sequence[int] = RECALL_AT
) -> dict[int, float]:
    """R@k in percent, in expectation over a uniformly random order of tied candidates.

    scores: [q, n]; right: int64 [q], the column of each query's only right answer. If h candidates
    score higher and e equal (the right one included), the probability of a place among the first k
    is `clip((k - h) / e, 0, 1)`.
    """
    own = scores.gather(1, right[:, None])
    higher = (scores > own).sum(dim=1)
    equal = (scores == own).sum(dim=1)
    return {k: 100 * float(((k - higher) / equal).clamp(0, 1).double().mean()) for k in recall_at}


def colours_in_text(text: str, colours: Sequence[str]) -> frozenset[str]:
    """The colours whose names occur in the text as whole words; longer names take precedence."""
    pattern = "|".join(re.escape(c) for c in sorted(colours, key=len, reverse=True))
    return frozenset(re.findall(rf"\b(?:{pattern})\b", text.lower())) if colours else frozenset()


def colour_set_baseline(
    captions: Sequence[str],
    clips: Sequence[Mapping[str, object]],
    video_of_text: Tensor,
    recall_at: Sequence[int] = RECALL_AT,
) -> ColourBaseline | None:
    """The better of two text-to-video matchers that only compare sets of colours.

    captions: q texts; clips: n sample records whose `objects` have a true `color`; video_of_text:
    int64 [q]. Q is the set of colour names in the caption, S the set of true colours of the clip's
    objects (a perfect colour detector). The rule `jaccard` scores a clip by |Q and S| / |Q or S|.
    The rule `containment` puts every S that contains Q before the others and orders both parts by
    Jaccard. The result is the expectation over a random order of ties, for the rule with the higher
    R@1. None if the clips have no colours, as in most data sets.
    """
    clip_sets = [_true_colours(clip) for clip in clips]
    colours = sorted(set().union(*clip_sets)) if clip_sets else []
    if not colours:
        return None
    caption_sets = [colours_in_text(caption, colours) for caption in captions]
    named, shown = _indicator(caption_sets, colours), _indicator(clip_sets, colours)
    recalls = {
        rule: _recall_of_rule(rule, named, shown, video_of_text, recall_at) for rule in COLOUR_RULES
    }
    rule = max(recalls, key=lambda name: recalls[name][min(recall_at)])
    return ColourBaseline(recalls[rule], rule, tuple(colours), len(set(clip_sets)))


def _recall_of_rule(
    rule: str, named: Tensor, shown: Tensor, right: Tensor, recall_at: Sequence[int]
) -> dict[int, float]:
    total = dict.fromkeys(recall_at, 0.0)
    rows = max(1, CHUNK_ELEMENTS // len(shown))
    for start in range(0, len(named), rows):
        chunk = named[start : start + rows]
        common = chunk @ shown.T
        either = chunk.sum(1, keepdim=True) + shown.sum(1) - common
        scores = torch.where(either > 0, common / either.clamp(min=1), 0.0)
        if rule == "containment":
            scores = scores + 2 * (common == chunk.sum(1, keepdim=True))
        part = expected_recall(scores, right[start : start + rows], recall_at)
        total = {k: total[k] + part[k] * len(chunk) / len(named) for k in recall_at}
    return total


def _true_colours(clip: Mapping[str, object]) -> frozenset[str]:
    objects = clip.get("objects") or []
    if not isinstance(objects, Sequence):
        raise ValueError(f"a sample's 'objects' must be a list, got {type(objects).__name__}")
    return frozenset(str(o["color"]).lower() for o in objects if "color" in o)


def _indicator(sets: Sequence[frozenset[str]], colours: Sequence[str]) -> Tensor:
    return torch.tensor([[float(c in s) for c in colours] for s in sets])
