"""Ranks of queries against hand cases, a full-matrix oracle and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svilm_fast.evaluation.metrics import (
    mid_ranks,
    text_to_video_ranks,
    video_to_text_ranks,
)


def naive_rank(scores: np.ndarray, right: np.ndarray) -> tuple[list[float], list[int]]:
    """Sorts every row: the mean of the best and the worst place of the best right answer."""
    ranks, ties = [], []
    for row, good in zip(scores, right):
        best = max(row[good])
        wrong = np.sort(row[~good])[::-1]
        first = int(np.searchsorted(-wrong, -best, side="left"))
        last = int(np.searchsorted(-wrong, -best, side="right"))
        ranks.append((first + last) / 2)
        ties.append(last - first)
    return ranks, ties


def integers(*shape: int, seed: int = 0, high: int = 3) -> Tensor:
    """Small whole numbers: dot products are exact, so that ties are plentiful and certain."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-high, high, shape)).float()


def test_hand_case_without_ties() -> None:
    texts = torch.eye(3)
    videos = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.1, 0.3], [0.7, 0.0, 0.5]])
    ranks = text_to_video_ranks(texts, videos, torch.arange(3))
    assert ranks.rank.tolist() == [0.0, 1.0, 0.0]
    assert ranks.ties.tolist() == [0, 0, 0]
    assert ranks.gallery_size == 3


def test_copies_that_differ_by_the_rounding_of_float32_tie() -> None:
    generator = torch.Generator().manual_seed(0)
    clip = torch.nn.functional.normalize(torch.randn(1, 64, generator=generator), dim=1)
    gallery = torch.cat([clip, clip * (1 + 2e-7), -clip])
    ranks = mid_ranks(clip, gallery, torch.tensor([0]), torch.arange(3))
    assert (ranks.rank.tolist(), ranks.ties.tolist()) == ([0.5], [1])
    apart = torch.cat([clip, clip * (1 + 1e-4), -clip])
    assert mid_ranks(clip, apart, torch.tensor([0]), torch.arange(3)).rank.tolist() == [1.0]


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_the_tie_tolerance_follows_the_norm(size: float) -> None:
    """Rounding scales with the embeddings: what ties at length 1 ties at every length."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.nn.functional.normalize(torch.randn(1, 64, generator=generator), dim=1)
    gallery = torch.cat([clip, clip * (1 + 2e-7), clip * (1 + 1e-4), clip * (1 - 1e-4)])
    for query, candidates in ((size * clip, gallery), (clip, size * gallery)):
        ranks = mid_ranks(query, candidates, torch.tensor([0]), torch.arange(4))
        assert (ranks.higher.tolist(), ranks.ties.tolist()) == ([1], [1])


def test_the_tie_tolerance_of_a_candidate_follows_its_own_norm() -> None:
    """A long candidate at a right angle: the rounding of its score is that of its length."""
    query = torch.tensor([[1.0, 1.0]])
    gallery = torch.tensor([[0.0, 1e-3], [1e4, -1e4]])
    ranks = mid_ranks(query, gallery, torch.tensor([0]), torch.arange(2))
    assert ranks.ties.tolist() == [1]
    gallery = torch.tensor([[0.0, 1.0], [1e4, -1e4]])
    assert mid_ranks(query, gallery, torch.tensor([0]), torch.arange(2)).ties.tolist() == [0]


def test_a_tied_right_caption_is_left_out_like_any_other() -> None:
    """Captions 0 and 1 are right, 2 is wrong, all score alike: the share is that of one of two."""
    videos, texts = torch.tensor([[1.0], [-1.0]]), torch.ones(3, 1)
    ranks = video_to_text_ranks(texts, videos, torch.tensor([0, 0, 1]))
    assert ranks.ties.tolist() == [1, 2]
    assert ranks.hits(1).tolist() == [1 / 2, 1 / 3]
    assert ranks.rank.tolist() == [0.5, 1.0]


def test_a_tie_takes_the_middle_place() -> None:
    texts = torch.tensor([[1.0]])
    videos = torch.tensor([[0.5], [0.9], [0.5], [0.5], [0.1]])
    ranks = text_to_video_ranks(texts, videos, torch.tensor([0]))
    assert ranks.rank.tolist() == [1 + 2 / 2]
    assert ranks.ties.tolist() == [2]


def test_a_collapsed_model_ranks_in_the_middle() -> None:
    same = torch.nn.functional.normalize(torch.full((101, 7), 0.3), dim=1)
    ranks = text_to_video_ranks(same, same, torch.arange(101))
    assert ranks.rank.tolist() == [50.0] * 101
    assert ranks.ties.tolist() == [100] * 101
    assert ranks.hits(10).tolist() == [10 / 101] * 101


def test_the_best_of_several_captions_counts_and_the_others_are_left_out() -> None:
    videos = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.2, 0.0], [0.9, 0.0], [0.8, 0.1], [0.5, 0.3]])
    owner = torch.tensor([0, 0, 0, 1])
    ranks = video_to_text_ranks(texts, videos, owner)
    assert ranks.rank.tolist() == [0.0, 0.0]
    swapped = video_to_text_ranks(texts, videos, torch.tensor([1, 1, 1, 0]))
    assert swapped.rank.tolist() == [2.0, 1.0]


def test_videos_without_caption_are_candidates_but_ask_nothing() -> None:
    videos = torch.tensor([[0.9], [1.0]])
    texts = torch.tensor([[1.0]])
    assert text_to_video_ranks(texts, videos, torch.tensor([0])).rank.tolist() == [1.0]
    assert len(video_to_text_ranks(texts, videos, torch.tensor([0])).rank) == 1


@pytest.mark.parametrize("chunk_elements", [1, 37, 1000, 10**6])
def test_agrees_with_the_full_matrix_for_every_chunk(chunk_elements: int) -> None:
    texts, videos = integers(41, 4, seed=1), integers(23, 4, seed=2)
    owner = torch.from_numpy(np.random.default_rng(3).integers(0, 23, 41))
    right = owner[:, None].numpy() == np.arange(23)
    found = text_to_video_ranks(texts, videos, owner, chunk_elements=chunk_elements)
    ranks, ties = naive_rank((texts @ videos.T).numpy(), right)
    assert found.rank.tolist() == ranks
    assert found.ties.tolist() == ties
    assert sum(ties) > 20

    captioned = torch.unique(owner)
    backward = video_to_text_ranks(texts, videos, owner, chunk_elements=chunk_elements)
    ranks, ties = naive_rank((videos @ texts.T).numpy()[captioned], right.T[captioned])
    assert backward.rank.tolist() == ranks
    assert backward.ties.tolist() == ties


def test_no_more_scores_than_a_chunk_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = Tensor.__matmul__

    def watched(left: Tensor, right: Tensor) -> Tensor:
        product = plain(left, right)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(Tensor, "__matmul__", watched)
    text_to_video_ranks(
        integers(100, 3), integers(50, 3), torch.arange(50).repeat(2), chunk_elements=200
    )
    assert max(sizes) == 200
    assert sum(sizes) == 100 * 50


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.sampled_from([0.5, 2.0, 8.0]))
def test_invariances(seed: int, count: int, factor: float) -> None:
    """Order of queries and gallery, and a positive factor on the queries, change no rank."""
    generator = torch.Generator().manual_seed(seed)
    texts, videos = integers(2 * count, 5, seed=seed), integers(count, 5, seed=seed + 1)
    owner = torch.randint(0, count, (2 * count,), generator=generator)
    base = text_to_video_ranks(texts, videos, owner)
    scaled = text_to_video_ranks(factor * texts, videos, owner)
    assert torch.equal(base.rank, scaled.rank)
    shuffled = torch.randperm(count, generator=generator)
    place = torch.argsort(shuffled)
    moved = text_to_video_ranks(texts, videos[shuffled], place[owner])
    assert torch.equal(base.rank, moved.rank)
    order = torch.randperm(2 * count, generator=generator)
    permuted = text_to_video_ranks(texts[order], videos, owner[order])
    assert torch.equal(base.rank[order], permuted.rank)
    assert bool(((base.rank >= 0) & (base.rank <= count - 1)).all())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_better_score_never_makes_the_rank_worse(seed: int) -> None:
    texts, videos = integers(6, 4, seed=seed), integers(9, 4, seed=seed + 1)
    owner = torch.arange(6)
    before = text_to_video_ranks(texts, videos, owner).rank
    closer = videos.clone()
    closer[0] = closer[0] + 0.5 * texts[0]
    assert float(text_to_video_ranks(texts, closer, owner).rank[0]) <= float(before[0])


@pytest.mark.parametrize(
    ("queries", "gallery", "labels", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), torch.arange(2), "with the same D"),
        (torch.ones(0, 3), torch.ones(2, 3), torch.arange(0), "nothing to rank"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.arange(3), "needs one label"),
        (torch.tensor([[1.0], [torch.nan]]), torch.ones(2, 1), torch.arange(2), "embedding 1"),
        (torch.ones(2, 1), torch.ones(2, 1), torch.tensor([0, 5]), "query 1 has no right answer"),
    ],
)
def test_bad_input_is_named(queries: Tensor, gallery: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mid_ranks(queries, gallery, labels, torch.arange(len(gallery)))
