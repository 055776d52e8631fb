"""Dual softmax and QB-Norm equal the full matrix, and never hold it."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from svilm_fast.evaluation.embed import Embeddings
from svilm_fast.evaluation.ranking import rank_pairs
from svilm_fast.evaluation.result import summarise_queries, table_rows
from svilm_fast.evaluation.retrieval import rank_embeddings
from svilm_fast.evaluation.set_level import SET_LEVEL, set_level_ranks


def unit(draw, count, width):
    rows = [[draw.gauss(0, 1) for _ in range(width)] for _ in range(count)]
    lengths = [math.sqrt(sum(x * x for x in row)) for row in rows]
    return [[x / length for x in row] for row, length in zip(rows, lengths)]


def published(scores, method, bank):
    """The scores as their papers write them, in plain Python; bank: scores of the query bank."""
    times = {"dsl": 100.0, "qbnorm": 20.0}[method]
    columns = range(len(scores[0]))
    over = scores if method == "dsl" else bank
    sums = [sum(math.exp(times * row[j]) for row in over) for j in columns]
    found = []
    for row in scores:
        probability = [math.exp(times * row[j]) / sums[j] for j in columns]
        if method == "dsl":
            found.append([row[j] * probability[j] for j in columns])
        else:
            activated = {max(columns, key=lambda j, r=each: r[j]) for each in bank}
            best = max(columns, key=lambda j: row[j])
            found.append(probability if best in activated else row)
    return found


@pytest.mark.parametrize("method", SET_LEVEL)
def test_ranks_equal_those_of_the_published_scores(method):
    draw, compared = random.Random(3), 0
    for _ in range(200):
        width, captions, videos = draw.randint(2, 4), draw.randint(1, 9), draw.randint(1, 7)
        queries, gallery = unit(draw, captions, width), unit(draw, videos, width)
        owner = [draw.randrange(videos) for _ in queries]
        if draw.random() < 0.5 and captions > 1:
            queries[-1] = queries[0]
        if draw.random() < 0.5 and videos > 1:
            gallery[-1] = gallery[0]
        bank = unit(draw, draw.randint(1, 5), width)
        of_bank = [[sum(a * b for a, b in zip(q, g)) for g in gallery] for q in bank]
        scores = [[sum(a * b for a, b in zip(q, g)) for g in gallery] for q in queries]
        found = set_level_ranks(
            torch.tensor(queries, dtype=torch.float64),
            torch.tensor(gallery, dtype=torch.float64),
            torch.tensor(owner),
            torch.arange(videos),
            method,
            bank=torch.tensor(bank, dtype=torch.float64),
            chunk_elements=draw.choice([1, 7, 10_000]),
        )
        for row, values in enumerate(published(scores, method, of_bank)):
            order = sorted(scores[row], reverse=True)
            if method == "qbnorm" and len(order) > 1 and order[0] - order[1] < 1e-9:
                continue  # which of two equal candidates is the best one is open
            own = values[owner[row]]
            rivals = [value for place, value in enumerate(values) if place != owner[row]]
            tied = [math.isclose(value, own, rel_tol=1e-9, abs_tol=1e-300) for value in rivals]
            near = [math.isclose(value, own, rel_tol=1e-3, abs_tol=1e-300) for value in rivals]
            if near != tied:
                continue  # whether rounding explains the difference is a matter of the tolerance
            compared += 1
            above = [value > own and not tie for value, tie in zip(rivals, tied)]
            assert found.higher[row] == sum(above)
            assert found.ties[row] == sum(tied)
    assert compared > 600


class Largest(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


@pytest.mark.parametrize("method", [*SET_LEVEL, None])
def test_no_tensor_grows_with_the_square_of_the_gallery(method):
    largest = []
    for count in (250, 500, 1000):
        texts, videos = torch.randn(2, count, 8)
        owner = torch.arange(count)
        with Largest() as seen:
            if method is None:
                rank_pairs(texts, videos, owner, chunk_elements=2000)
            else:
                set_level_ranks(
                    texts, videos, owner, owner, method, bank=texts, chunk_elements=2000
                )
        largest.append(seen.elements)
    assert largest[-1] <= 8 * 1000
    assert largest[-1] < 1000 * 1000 / 100


def test_rows_are_named_and_stored_apart(tmp_path):
    generator = torch.Generator().manual_seed(0)
    videos = torch.nn.functional.normalize(torch.randn(30, 8, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(videos + 0.3 * torch.randn(30, 8, generator=generator))
    names = [f"v{n}" for n in range(30)]
    found = Embeddings(names, names, videos, texts, torch.arange(30), [{}] * 30)
    plain = rank_embeddings(found, resamples=0)
    result = rank_embeddings(found, resamples=0, set_level=("dsl", "qbnorm"), bank=texts[:9])
    assert result.text_to_video == plain.text_to_video
    assert result.metrics() == plain.metrics()
    rows = [name for name, _ in table_rows(result)]
    assert rows[2:5] == ["set-level dsl t2v", "set-level dsl v2t", "set-level qbnorm t2v"]
    both = rank_embeddings(
        found, resamples=0, set_level=("qbnorm",), bank=texts[:9], video_bank=videos[9:18]
    )
    assert list(both.apart) == ["set-level qbnorm t2v", "set-level qbnorm v2t"]
    assert both.apart["set-level qbnorm t2v"] == result.apart["set-level qbnorm t2v"]
    owner = torch.arange(30)
    back = set_level_ranks(videos, texts, owner, owner, "qbnorm", bank=videos[9:18])
    wanted = summarise_queries(back, None, {}, 0)
    assert both.apart["set-level qbnorm v2t"] == wanted
    written = result.to_json()
    assert written["protocol"]["reported_apart"] == list(written["apart"]) == list(result.apart)
    assert plain.to_json()["apart"] == {}
    with pytest.raises(ValueError, match="unknown set-level score x: choose among dsl, qbnorm"):
        rank_embeddings(found, set_level=("x",))
    with pytest.raises(ValueError, match="qbnorm needs a bank of training queries"):
        rank_embeddings(found, set_level=("qbnorm",))
