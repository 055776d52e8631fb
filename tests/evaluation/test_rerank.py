"""Re-ranking by nouns equals grounding's own scores, and touches only the candidates."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.core.errors import UserError
from svilm_fast.evaluation.embed import Embeddings
from svilm_fast.evaluation.metrics import QueryRanks
from svilm_fast.evaluation.ranking import rank_pairs
from svilm_fast.evaluation.rerank import CaptionNouns, noun_scores, rerank_by_nouns
from svilm_fast.evaluation.retrieval import RetrievalOptions, evaluate_dataset
from svilm_fast.kernels.grounding.reference import grounding_scores

VIDEOS, GROUPS, WIDTH = 12, 4, 6


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return normalize(torch.randn(*shape, generator=generator), dim=-1)

    owner = torch.arange(VIDEOS).repeat_interleave(2)
    videos, texts = drawn(VIDEOS, WIDTH), drawn(2 * VIDEOS, WIDTH)
    index = torch.randint(-1, 5, (2 * VIDEOS, 3), generator=generator)
    index[0] = -1
    names = [f"v{n}" for n in range(VIDEOS)]
    found = Embeddings(
        names, names * 2, videos, texts, owner, [{}] * VIDEOS, groups=drawn(VIDEOS, GROUPS, WIDTH)
    )
    return found, CaptionNouns(drawn(5, WIDTH), index)


def test_scores_equal_those_of_grounding(case):
    found, nouns = case
    groups = found.groups[None].expand(len(nouns.index), -1, -1, -1)
    scores = noun_scores(groups, nouns.vectors, nouns.index, 3.0)
    mask = nouns.index >= 0
    chosen = nouns.vectors[nouns.index.clamp(min=0)].double()
    expected = grounding_scores(found.groups.double(), chosen, mask, torch.tensor(3.0).double())
    torch.testing.assert_close(scores, expected.T)


@pytest.mark.parametrize("k", [1, 4, VIDEOS])
def test_the_order_of_the_candidates_is_that_of_the_scores(case, k):
    found, nouns = case
    owner = found.video_of_text
    ranks = rank_pairs(found.texts, found.videos, owner, top=k)
    after = rerank_by_nouns(ranks.text_to_video, ranks.top_videos, found, nouns, sharpness=3.0)
    for row in range(len(owner)):
        candidates = ranks.top_videos[row].tolist()
        before = int(ranks.text_to_video.higher[row])
        if int(owner[row]) not in candidates or bool((nouns.index[row] < 0).all()):
            assert int(after.higher[row]) == before
            continue
        scores = noun_scores(
            found.groups[candidates][None], nouns.vectors, nouns.index[row : row + 1], 3.0
        )[0]
        own = scores[candidates.index(int(owner[row]))]
        assert int(after.higher[row]) == int((scores > own + 1e-9).sum())
        assert before < k
        assert int(after.higher[row]) < k
    assert (after.higher != ranks.text_to_video.higher).any() == (k > 1)


def test_equal_groups_tie(case):
    found, nouns = case
    found.groups = found.groups[:1].expand(VIDEOS, -1, -1)
    owner = found.video_of_text
    candidates = torch.stack([(video + torch.arange(3)) % VIDEOS for video in owner])
    before = QueryRanks(torch.zeros(len(owner)).long(), torch.zeros(len(owner)).long(), VIDEOS)
    after = rerank_by_nouns(before, candidates, found, nouns, sharpness=3.0)
    has_nouns = (nouns.index >= 0).any(dim=1)
    assert after.ties[has_nouns].tolist() == [2] * int(has_nouns.sum())
    assert int(after.ties[0]) == 0


@pytest.mark.parametrize(
    "groups, message", [(False, "needs group tokens"), (True, "the captions have no nouns")]
)
def test_what_is_missing_is_told(make_dataset, colour_model, monkeypatch, groups, message):
    encode = colour_model.encode_video

    def with_groups(*arguments):
        features = encode(*arguments)
        features.groups = features.video[:, None] if groups else None
        return features

    monkeypatch.setattr(colour_model, "encode_video", with_groups)
    with pytest.raises(UserError, match=message):
        evaluate_dataset(colour_model, make_dataset(), RetrievalOptions(rerank=3), batch_size=4)
