"""One float32 pass gives the ranks of the float64 reference, near ties included."""

from __future__ import annotations

import itertools

import pytest
import torch

from svilm_fast.evaluation.metrics import (
    text_to_video_ranks,
    video_to_text_ranks,
)
from svilm_fast.evaluation.ranking import rank_pairs

KINDS = (
    "random",
    "close",
    "duplicates",
    "whole numbers",
    "collapsed",
    "scaled",
    "edge",
    "tiny",
    "huge",
)


def _case(kind, seed):
    """Texts, videos and the video of every text."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    count = int(torch.randint(1, 40, (), generator=generator))
    queries = int(torch.randint(1, 90, (), generator=generator))
    dim = int(torch.randint(1, 70, (), generator=generator))
    owner = torch.randint(0, count, (queries,), generator=generator)
    videos = draw(count, dim)
    texts = draw(queries, dim)
    if kind == "close":  # float32 cannot tell many of them apart
        videos = draw(dim) + 1e-7 * videos
    elif kind == "duplicates":
        videos = videos[torch.randint(0, count, (count,), generator=generator) // 3]
        texts = videos[owner] + draw(1, dim)
    elif kind == "whole numbers":
        videos, texts = videos.round(), texts.round()
    elif kind == "collapsed":
        videos, texts = torch.ones(count, dim), torch.ones(queries, dim)
    elif kind == "scaled":
        videos = videos * 10.0 ** draw(count, 1)
        texts = texts * 10.0 ** (6 * draw(queries, 1))
    elif kind == "tiny":  # scores below the range of float32
        texts, videos = 1e-21 * texts.double(), 1e-22 * videos.double()
    elif kind == "huge":  # embeddings beyond it
        texts, videos = 1e60 * texts.double(), 1e30 * videos.double()
    elif kind == "edge":  # leads of about the tolerance
        texts = videos[owner].clone()
        videos = videos + 5e-7 * draw(count, dim)
    return texts, videos, owner


def _same(found, expected):
    assert torch.equal(found.higher, expected.higher)
    assert torch.equal(found.ties, expected.ties)
    assert found.gallery_size == expected.gallery_size


def _best_scores_are_close(found, texts, videos):
    """The best scores and those of the named videos, to the rounding of fp32 sums of products.

    It is relative to the products: terms that cancel leave a score with few exact digits.
    """
    scores = texts @ videos.T
    products = texts.abs() @ videos.abs().T
    rounding = 2 * texts.shape[1] * 2.0**-24 * products.amax(dim=1, keepdim=True)
    best = scores.topk(min(5, len(videos)), dim=1).values
    for expected in (best, scores.gather(1, found.top_videos)):
        expected = expected.float()
        near = (found.top_scores - expected).abs() <= rounding + 2.0**-148  # subnormal numbers
        assert (near | (found.top_scores == expected)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_the_float64_reference(kind):
    for seed in range(60):
        texts, videos, owner = _case(kind, seed)
        found = rank_pairs(texts, videos, owner, chunk_elements=7 * len(videos))
        _same(found.text_to_video, text_to_video_ranks(texts, videos, owner))
        _same(found.video_to_text, video_to_text_ranks(texts, videos, owner))
        _best_scores_are_close(found, texts.double(), videos.double())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_the_float64_reference_in_ten_thousand_cases(kind):
    for seed in range(1000, 2500):
        texts, videos, owner = _case(kind, seed)
        found = rank_pairs(texts, videos, owner, chunk_elements=16 * len(videos))
        _same(found.text_to_video, text_to_video_ranks(texts, videos, owner))
        _same(found.video_to_text, video_to_text_ranks(texts, videos, owner))


def test_large_random_sets_need_few_float64_pairs(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    videos = torch.nn.functional.normalize(torch.randn(1500, 256, generator=generator))
    owner = torch.randint(0, 1500, (2000,), generator=generator)
    noise = torch.randn(2000, 256, generator=generator)
    texts = torch.nn.functional.normalize(videos[owner] + 0.15 * noise)
    monkeypatch.setattr("svilm_fast.evaluation.ranking._Pass._in_float64", None)  # never called
    found = rank_pairs(texts, videos, owner)
    _same(found.text_to_video, text_to_video_ranks(texts, videos, owner))
    _same(found.video_to_text, video_to_text_ranks(texts, videos, owner))


@pytest.mark.parametrize("ranks", [2, 3, 50])
def test_ranks_that_share_the_texts_give_the_whole(ranks):
    texts, videos, owner = _case("duplicates", 7)
    whole = rank_pairs(texts, videos, owner)
    parts = []

    def collect(part):
        parts.append(part)
        return [part]

    for rank in range(ranks):
        rank_pairs(texts, videos, owner, part=(rank, ranks), gather=collect)
    joined = rank_pairs(texts, videos, owner, part=(0, ranks), gather=lambda part: parts)
    _same(joined.text_to_video, whole.text_to_video)
    _same(joined.video_to_text, whole.video_to_text)
    # Rounding depends on the shape of a product and decides which of two duplicates comes first.
    torch.testing.assert_close(joined.top_scores, whole.top_scores)


def test_bad_input_is_refused():
    good = torch.ones(2, 3)
    for texts, videos, owner, message in (
        (torch.ones(2, 4), good, torch.tensor([0, 1]), "same D"),
        (good, good, torch.tensor([0, 2]), r"\[0, 2\)"),
        (good, good, torch.tensor([-1, 0]), r"\[0, 2\)"),
        (good * float("nan"), good, torch.tensor([0, 1]), "not finite"),
        (good[:0], good, torch.tensor([], dtype=torch.int64), "nothing to rank"),
    ):
        with pytest.raises(ValueError, match=message):
            rank_pairs(texts, videos, owner)


def test_the_expected_rank_of_a_tie_by_hand():
    videos = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = rank_pairs(texts, videos, torch.tensor([0, 1]))
    assert found.text_to_video.higher.tolist() == [0, 1]
    assert found.text_to_video.ties.tolist() == [1, 1]
    # Video 0 has text 0 and beats text 1; video 1 has text 1, and text 0 is higher.
    assert found.video_to_text.higher.tolist() == [0, 1]
    assert found.video_to_text.ties.tolist() == [0, 0]
    assert list(itertools.chain(*found.top_scores[:, :1].tolist())) == [1.0, 1.0]
