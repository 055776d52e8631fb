"""What a retrieval number is measured against: chance, and a matcher that sees only colours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svilm_fast.evaluation.metrics import CHUNK_ELEMENTS, RECALL_AT

COLOUR_RULES = ("jaccard", "containment")


@dataclass(frozen=True)
class ChanceInterval:
    """R@k of a matcher that guesses, in percent: the mean, and where it falls at `confidence`."""

    k: int
    expected: float
    low: float
    high: float
    confidence: float

    def __contains__(self, recall: float) -> bool:
        return self.low - 1e-9 <= recall <= self.high + 1e-9


@dataclass(frozen=True)
class ColourBaseline:
    """Expected text-to-video recall (percent) of matching colour sets, and the rule that won."""

    recall: dict[int, float]
    rule: str
    colours: tuple[str, ...]
    distinct_clip_sets: int


def chance_interval(
    queries: int, gallery_size: int, k: int = 10, confidence: float = 0.999
) -> ChanceInterval:
    """The central binomial interval of R@k when every query guesses, in percent.

    Each tail outside the interval has a probability of at most `(1 - confidence) / 2`.
    """
    if queries < 1 or gallery_size < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"chance needs at least one query, one candidate and a confidence in (0, 1), got "
            f"{queries}, {gallery_size} and {confidence}"
        )
    chance = min(1.0, k / gallery_size)
    # Not at the top: scipy.stats takes most of a second to import.
    from scipy.stats import binom

    low, high = (int(end) for end in binom.interval(confidence, queries, chance))
    percent = 100 / queries
    return ChanceInterval(k, 100 * chance, percent * low, percent * high, confidence)


def expected_recall(
    scores: Tensor, right: Tensor, recall_at: Sequence[int] = RECALL_AT
) -> dict[int, float]:
    """R@k in percent, in expectation over a uniformly random order of tied candidates.

    scores: [q, n]; right: int64 [q], the column of each query's one right answer. With h candidates
    higher and e equal (the right one included), the chance of a place among the first k is
    `clip((k - h) / e, 0, 1)`.
    """
    own = scores.gather(1, right[:, None])
    higher = (scores > own).sum(dim=1)
    equal = (scores == own).sum(dim=1)
    return {k: 100 * float(((k - higher) / equal).clamp(0, 1).double().mean()) for k in recall_at}


def colours_in_text(text: str, colours: Sequence[str]) -> frozenset[str]:
    """The colours whose name stands in the text as whole words; longer names win over shorter."""
    pattern = "|".join(re.escape(c) for c in sorted(colours, key=len, reverse=True))
    return frozenset(re.findall(rf"\b(?:{pattern})\b", text.lower())) if colours else frozenset()


def colour_set_baseline(
    captions: Sequence[str],
    clips: Sequence[Mapping[str, object]],
    video_of_text: Tensor,
    recall_at: Sequence[int] = RECALL_AT,
) -> ColourBaseline | None:
    """The strongest text-to-video retrieval that knows nothing but sets of colours.

    captions: q texts; clips: n sample records whose `objects` carry a true `color`; video_of_text:
    int64 [q]. The caption gives the set Q of the colour names that stand in it, the clip the set S
    of its objects' true colours (a perfect colour detector). Two rules score a clip: `jaccard`,
    |Q and S| / |Q or S|; `containment`, which puts every S that holds all of Q before the others
    and orders by Jaccard within. Ties are broken at random and the result is the expectation over
    that, so no luck enters. Of the two rules the one with the higher R@1 is returned: the baseline
    gets the benefit of the doubt. None where the clips carry no colours (data of one's own).
    """
    clip_sets = [_true_colours(clip) for clip in clips]
    colours = sorted(set().union(*clip_sets)) if clip_sets else []
    if not colours:
        return None
    caption_sets = [colours_in_text(caption, colours) for caption in captions]
    asked = _indicator(caption_sets, colours)
    held = _indicator(clip_sets, colours)
    recalls = {
        rule: _recall_of_rule(rule, asked, held, video_of_text, recall_at) for rule in COLOUR_RULES
    }
    rule = max(recalls, key=lambda name: recalls[name][min(recall_at)])
    return ColourBaseline(recalls[rule], rule, tuple(colours), len(set(clip_sets)))


def _recall_of_rule(
    rule: str, asked: Tensor, held: Tensor, right: Tensor, recall_at: Sequence[int]
) -> dict[int, float]:
    total = dict.fromkeys(recall_at, 0.0)
    rows = max(1, CHUNK_ELEMENTS // len(held))
    for start in range(0, len(asked), rows):
        chunk = asked[start : start + rows]
        shared = chunk @ held.T
        either = chunk.sum(1, keepdim=True) + held.sum(1) - shared
        scores = torch.where(either > 0, shared / either.clamp(min=1), 0.0)
        if rule == "containment":
            scores = scores + 2 * (shared == chunk.sum(1, keepdim=True))
        part = expected_recall(scores, right[start : start + rows], recall_at)
        total = {k: total[k] + part[k] * len(chunk) / len(asked) for k in recall_at}
    return total


def _true_colours(clip: Mapping[str, object]) -> frozenset[str]:
    objects = clip.get("objects") or []
    if not isinstance(objects, Sequence):
        raise ValueError(f"a sample's 'objects' must be a list, got {type(objects).__name__}")
    return frozenset(str(o["color"]).lower() for o in objects if "color" in o)


def _indicator(sets: Sequence[frozenset[str]], colours: Sequence[str]) -> Tensor:
    return torch.tensor([[float(c in s) for c in colours] for s in sets])
