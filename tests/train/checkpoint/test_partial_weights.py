"""Weights that fit a model in part: what is taken, what is told, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from svilm_fast.core.errors import CheckpointError
from svilm_fast.tasks.base import InitialWeights
from svilm_fast.train.checkpoint.partial import compare_weights

SOURCE = Path("run/portable")
SAVED = {"body.weight": [4, 4], "head.weight": [2, 4], "loss.scale": [1], "loss.beta": [1]}
MODEL = {"body.weight": [4, 4], "head.weight": [3, 4], "head.bias": [3]}
ALLOWED = InitialWeights(may_be_new=("head.*",), may_be_missing=("loss.*",))


def test_what_is_new_missing_or_of_another_shape_is_told() -> None:
    report = compare_weights(SAVED, MODEL, ALLOWED, SOURCE)
    assert report.taken == ("body.weight",)
    assert report.new == ("head.bias",)
    assert report.reshaped == ("head.weight",)
    assert report.missing == ("loss.scale", "loss.beta")
    assert report.lines(SOURCE) == [
        "weights of run/portable: 1 of the model's 3 tensors taken",
        "  new, they keep their initial values: 1 (head.bias)",
        "  of another shape, they keep their initial values: 1 (head.weight)",
        "  in the weights alone, left out: 2 (loss.scale, loss.beta)",
    ]


def test_weights_that_fit_are_not_talked_about() -> None:
    report = compare_weights(MODEL, MODEL, InitialWeights(), SOURCE)
    assert report.taken == tuple(MODEL)
    assert report.lines(SOURCE) == []


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (
            InitialWeights(),
            r"not in the weights: 1 \(head\.bias\); not in the model: 2 \(loss\.scale, "
            r"loss\.beta\); of another shape: 1 \(head\.weight \[2, 4\], in the model \[3, 4\]\)",
        ),
        (InitialWeights(may_be_new=("*",)), r"model; not in the model: 2 \(loss\.scale, "),
        (
            InitialWeights(may_be_new=("head.bias",), may_be_missing=("*",)),
            r"model; of another shape: 1 \(head\.weight \[2, 4\]",
        ),
        (InitialWeights(("head.w*",), ("*",)), r"model; not in the weights: 1 \(head\.bias\)\. "),
        (InitialWeights(("*",), ("loss.s*",)), r"model; not in the model: 1 \(loss\.beta\)\. "),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(allowed: InitialWeights, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        compare_weights(SAVED, MODEL, allowed, SOURCE)


def test_a_long_list_is_cut_and_counted() -> None:
    many = {f"layer.{index}": [1] for index in range(9)}
    with pytest.raises(CheckpointError, match=r"9 \(layer\.0, layer\.1, layer\.2 and 6 more\)"):
        compare_weights({}, many, InitialWeights(), SOURCE)
