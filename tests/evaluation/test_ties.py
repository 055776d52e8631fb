"""Ranks under ties and duplicates equal brute force (slow: over ten thousand random cases).

The brute force is plain Python: whole numbers as scores, and places of tied candidates counted one
by one. It shares no code and no formula with the package.
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from svilm_fast.evaluation.metrics import RECALL_AT, mid_ranks, summarise, video_to_text_ranks
from svilm_fast.evaluation.ranking import rank_pairs

MANY = pytest.param(4_000, marks=pytest.mark.slow)


def brute_hits(scores, right, k):
    """Share of all orders of tied candidates in which the best right one is among the first k."""
    best = max(score for score, is_right in zip(scores, right) if is_right)
    rivals = [score for score, is_right in zip(scores, right) if not is_right]
    above = len([score for score in rivals if score > best])
    equal = len([score for score in rivals if score == best])
    places = [above + place for place in range(equal + 1)]
    return len([place for place in places if place < k]) / len(places)


def random_problem(draw):
    """Texts, videos and owners with few distinct values, so that most scores are tied."""
    videos, width = draw.randint(1, 14), draw.randint(1, 3)
    texts = draw.randint(1, 16)
    values = [-1, 0, 1, 2][: draw.randint(2, 4)]

    def rows(count):
        return [[draw.choice(values) for _ in range(width)] for _ in range(count)]

    return rows(texts), rows(videos), [draw.randrange(videos) for _ in range(texts)]


def dots(queries, gallery):
    return [[sum(a * b for a, b in zip(q, g)) for g in gallery] for q in queries]


def expected_recalls(scores, right):
    return {
        k: 100 * sum(brute_hits(s, r, k) for s, r in zip(scores, right)) / len(scores)
        for k in RECALL_AT
    }


@pytest.mark.parametrize("cases", [1000, MANY])
def test_mid_ranks_equal_brute_force_in_both_directions(cases):
    draw = random.Random(0)
    tied = 0
    for _ in range(cases):
        texts, videos, owner = random_problem(draw)
        t, v, o = torch.tensor(texts).float(), torch.tensor(videos).float(), torch.tensor(owner)
        found = summarise(mid_ranks(t, v, o, torch.arange(len(videos))), resamples=0)
        right = [[video == mine for video in range(len(videos))] for mine in owner]
        assert found.recall == pytest.approx(expected_recalls(dots(texts, videos), right))
        tied += found.tied_queries > 0
        back = summarise(video_to_text_ranks(t, v, o), resamples=0)
        captioned = sorted(set(owner))
        right = [[mine == video for mine in owner] for video in captioned]
        scores = dots([videos[video] for video in captioned], texts)
        assert back.recall == pytest.approx(expected_recalls(scores, right))
        assert back.queries == len(captioned)
    assert tied > cases // 2


def test_one_product_equals_brute_force_in_both_directions():
    draw = random.Random(1)
    for _ in range(500):
        texts, videos, owner = random_problem(draw)
        t, v, o = torch.tensor(texts).float(), torch.tensor(videos).float(), torch.tensor(owner)
        found = rank_pairs(t, v, o, top=2, chunk_elements=draw.choice([1, 40, 10_000]))
        right = [[video == mine for video in range(len(videos))] for mine in owner]
        scores = dots(texts, videos)
        for k in RECALL_AT:
            hits = [brute_hits(s, r, k) for s, r in zip(scores, right)]
            assert found.text_to_video.hits(k).tolist() == pytest.approx(hits)
        captioned = sorted(set(owner))
        right = [[mine == video for mine in owner] for video in captioned]
        scores = dots([videos[video] for video in captioned], texts)
        for k in RECALL_AT:
            hits = [brute_hits(s, r, k) for s, r in zip(scores, right)]
            assert found.video_to_text.hits(k).tolist() == pytest.approx(hits)


def test_the_share_is_the_mean_over_all_orders():
    """Every order of the candidates, sorted stably: the mean is the share, exactly."""
    draw = random.Random(2)
    for _ in range(60):
        count = draw.randint(1, 6)
        scores = [draw.randint(0, 2) for _ in range(count)]
        for k in (1, 2, 5):
            hits = 0
            orders = list(itertools.permutations(range(count)))
            for order in orders:
                ranked = sorted(order, key=lambda candidate: -scores[candidate])
                hits += ranked.index(0) < k
            share = brute_hits(scores, [candidate == 0 for candidate in range(count)], k)
            assert share == pytest.approx(hits / len(orders))


def test_repeated_captions_of_msrvtt_cost_half_a_percent_in_expectation():
    """1,000 captions of which four groups (2, 3, 2, 2) are equal, and a perfect model."""
    captions = list(range(1000))
    for group in ((0, 1), (2, 3, 4), (5, 6), (7, 8)):
        for member in group:
            captions[member] = group[0]
    videos = torch.eye(1000)
    texts = torch.zeros(1000, 1000)
    for row, caption in enumerate(captions):
        texts[row, [other for other in range(1000) if captions[other] == caption]] = 1.0
    texts /= texts.norm(dim=1, keepdim=True)
    found = rank_pairs(texts, videos, torch.arange(1000))
    assert len(set(captions)) == 995
    assert float(found.text_to_video.hits(1).mean()) == pytest.approx(0.995)
    assert float(found.video_to_text.hits(1).mean()) == pytest.approx(0.995)
