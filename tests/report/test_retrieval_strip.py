"""Which queries are shown, and that the right clip has the frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from svilm_fast.evaluation.metrics import QueryRanks
from svilm_fast.report.canvas import Canvas
from svilm_fast.report.retrieval import choose_queries, draw_retrieval_strip
from svilm_fast.report.theme import LIGHT, THEMES, drawing, rgb


def test_best_and_worst_queries_are_apart_and_ordered(make_result) -> None:
    result = make_result()
    higher = torch.tensor([0, 3, 0, 7, 0, 1, 0, 0])
    result.text_ranks = QueryRanks(higher, torch.zeros_like(higher), 8)
    best, worst = choose_queries(result, 3)
    assert worst == [3, 1, 5]
    assert set(best) <= {0, 2, 4, 6, 7}
    lead = (result.top_scores[:, 0] - result.top_scores[:, 1]).tolist()
    assert [lead[row] for row in best] == sorted((lead[row] for row in best), reverse=True)
    best, worst = choose_queries(result, 100)
    assert sorted(best + worst) == list(range(8))


def test_a_video_is_shown_once(make_result) -> None:
    result = make_result()
    result.embeddings.video_of_text = result.embeddings.video_of_text // 4
    best, worst = choose_queries(result, 5)
    assert len(best) == len(worst) == 2


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_the_right_clip_is_framed(make_result, pixels, share_of, theme) -> None:
    result = make_result()
    with drawing(theme):
        image = pixels(draw_retrieval_strip(result, [6], theme))
    # Text 6 finds video 6 first: the frame is in the first fifth, and nowhere else.
    fifth = image.shape[1] // 5
    assert share_of(image[:, :fifth], rgb(theme.right)) > 0.02
    assert share_of(image[:, fifth + 10 :], rgb(theme.right)) == 0
    assert share_of(image[:, :fifth], [60, 60, 60]) > 0.2


def test_a_right_clip_far_behind_stands_last(make_result, pixels, share_of) -> None:
    result = make_result(swap=True)
    row = 1  # its right clip is video 0, the worst of all for every text but 0
    assert float(result.text_rank[row]) == 7
    with drawing(LIGHT):
        image = pixels(draw_retrieval_strip(result, [row], LIGHT))
    last = image[:, int(0.82 * image.shape[1]) :]
    assert share_of(last, rgb(LIGHT.right)) > 0.02
    assert share_of(last, [0, 0, 0]) > 0.2
    assert share_of(image[:, : int(0.78 * image.shape[1])], rgb(LIGHT.right)) == 0


def test_a_tied_right_clip_shows_its_expected_rank(make_result, monkeypatch) -> None:
    """The order of tied clips on the page is arbitrary, so the place is no rank."""
    result = make_result()
    result.text_ranks.ties[6] = 1
    written = []
    monkeypatch.setattr(Canvas, "text", lambda self, x, y, text, **look: written.append(text))
    with drawing(LIGHT):
        draw_retrieval_strip(result, [6], LIGHT)
    assert "1.5.  right clip" in written
    assert [text for text in written if text.endswith(".")] == ["2.", "3.", "4.", "5."]


def test_every_query_gets_a_block(make_result, pixels) -> None:
    result = make_result()
    with drawing(LIGHT):
        one = pixels(draw_retrieval_strip(result, [0], LIGHT)).shape[0]
        three = pixels(draw_retrieval_strip(result, [0, 1, 2], LIGHT)).shape[0]
    assert three > 2.8 * one


def test_missing_frames_and_queries_are_named(make_result) -> None:
    with pytest.raises(ValueError, match="keep_frames=4"):
        draw_retrieval_strip(make_result(frames=False), [0], LIGHT)
    with pytest.raises(ValueError, match="no queries"):
        draw_retrieval_strip(make_result(), [], LIGHT)


def test_small_galleries_have_fewer_columns(make_result, pixels) -> None:
    with drawing(LIGHT):
        image = pixels(draw_retrieval_strip(make_result(count=2), [0], LIGHT))
    assert (np.asarray(image[:, image.shape[1] // 2 :]) == 255).all()
