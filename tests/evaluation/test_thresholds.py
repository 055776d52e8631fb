"""A result meets its acceptance thresholds or not."""

import pytest
import torch

from svilm_fast.evaluation import Embeddings, rank_embeddings
from svilm_fast.evaluation.thresholds import check_thresholds


def result_of(noise: float, colours: bool = True):
    generator = torch.Generator().manual_seed(0)
    videos = torch.nn.functional.normalize(torch.randn(200, 16, generator=generator), dim=1)
    texts = videos + noise * torch.randn(200, 16, generator=generator)
    names = ["red", "blue"] if colours else ["", ""]
    embeddings = Embeddings(
        video_ids=[f"v{i}" for i in range(200)],
        captions=[f"a {names[i % 2]} ring, {i}" for i in range(200)],
        videos=videos,
        texts=torch.nn.functional.normalize(texts, dim=1),
        video_of_text=torch.arange(200),
        metadata=[{"objects": [{"color": names[i % 2]}]} if colours else {} for i in range(200)],
    )
    return rank_embeddings(embeddings, protocol="test")


def met(result, **thresholds):
    return [reached for reached, _ in check_thresholds(result, **thresholds)]


def test_a_model_that_knows_reaches_its_targets_and_is_not_at_chance():
    result = result_of(noise=0.01)
    assert result.text_to_video.recall[1] > 90
    assert met(result, least=20, times_colours=2) == [True, True]
    assert met(result, at_chance=True) == [False]


def test_a_model_that_guesses_is_at_chance_and_reaches_nothing():
    result = result_of(noise=1000.0)
    assert met(result, least=20, times_colours=2) == [False, False]
    assert met(result, at_chance=True) == [True]


def test_the_line_names_figure_and_target():
    ((_, text),) = check_thresholds(result_of(noise=0.01), least=101)
    assert "R@1 100.0 %" in text
    assert "at least 101.0 %" in text


def test_unknown_colours_cannot_be_a_threshold():
    with pytest.raises(ValueError, match="times-colours"):
        check_thresholds(result_of(noise=1.0, colours=False), times_colours=2)


def test_without_thresholds_nothing_is_checked():
    assert check_thresholds(result_of(noise=1.0)) == []
