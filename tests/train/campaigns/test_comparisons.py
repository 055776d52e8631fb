"""Claims of a table: what they compare, and whether they held."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from svilm_fast.core.outcomes import cluster_numbers, shares_text
from svilm_fast.train.campaigns.bootstrap import paired_interval
from svilm_fast.train.campaigns.comparisons import verdict, with_interval
from svilm_fast.train.campaigns.page import page_text
from svilm_fast.train.campaigns.table import Claim, TableSection

METRIC = "structure/pointing"


def section_of(own: list[float], other: list[float]) -> dict[str, Any]:
    return {
        "title": "Pointing",
        "text": None,
        "columns": {METRIC: "Pointing"},
        "compare": "Without",
        "queries": {},
        "rows": {
            "With": {"run": "a", "values": {METRIC: own}, "shares": {}},
            "Without": {"run": "b", "values": {METRIC: other}, "shares": {}},
        },
    }


def claim(**changed: Any) -> Claim:
    content = {"text": "It points.", "metric": METRIC, "row": "With"}
    return Claim.model_validate(content | changed)


@pytest.mark.parametrize(
    ("own", "other", "changed", "margin", "text"),
    [
        ([61.0, 60.0, 59.0, 60.0, 60.0], 5 * [20.0], {}, 40.0, "held"),
        ([61.0, 60.0, 59.0, 60.0, 60.0], 5 * [20.0], {"times": 2}, 20.0, "held"),
        ([61.0, 60.0, 59.0, 60.0, 60.0], 5 * [20.0], {"times": 4}, -20.0, "did not hold"),
        ([61.0, 60.0, 59.0, 60.0, 60.0], 5 * [20.0], {"times": 3}, 0.0, "open"),
        ([61.0, 60.0, 59.0, 60.0, 60.0], 5 * [20.0], {"plus": 45}, -5.0, "did not hold"),
        ([61.0, 60.0, 59.0, 60.0, 60.0], 5 * [20.0], {"plus": -2, "times": 3}, 2.0, "held"),
        ([61.0, 60.0, 59.0, 60.0, 60.0], 5 * [20.0], {"lower": True}, -40.0, "did not hold"),
        ([3.0, 4.0, 5.0], 3 * [2.0], {}, 2.0, "in 3 of 3 seeds"),
        ([3.0, 2.0, 1.0], 3 * [2.0], {}, 0.0, "in 1 of 3 seeds"),
        ([3.0], [2.0], {}, 1.0, "in 1 of 1 seed"),
        # Equal differences have no interval, whatever rounding does.
        (5 * [0.3], 5 * [0.1 + 0.2], {}, 0.0, "in 0 of 5 seeds"),
        (5 * [0.1 + 0.2], 5 * [0.3], {}, 0.0, "in 0 of 5 seeds"),
    ],
)
def test_verdicts(
    own: list[float], other: list[float], changed: dict[str, Any], margin: float, text: str
) -> None:
    section = section_of(own, other)
    found = verdict(section, with_interval(section, claim(**changed)))
    assert found.margin == pytest.approx(margin)
    assert found.text == text
    assert (found.interval is None) == (len(own) < 5 or len(set(own)) == 1)


def test_a_claim_names_its_own_reference() -> None:
    section = section_of([1.0, 2.0], [3.0, 4.0])
    kept = with_interval(section, claim(row="Without", than="With"))
    assert kept["than"] == "With"
    assert verdict(section, kept).margin == 2.0


def test_the_margin_is_drawn_over_queries_too() -> None:
    """Twice the other row's answers are subtracted query by query."""
    generator = np.random.default_rng(3)
    own, other = (generator.integers(0, 2, (5, 6)).astype(float) for _ in range(2))
    section = section_of(*((100 * each.mean(axis=1)).tolist() for each in (own, other)))
    for row, shares in zip(section["rows"].values(), (own, other), strict=True):
        row["shares"] = {METRIC: [shares_text(each) for each in shares]}
    numbers, digest = cluster_numbers(["a", "a", "b", "c", "d", "e"])
    section["queries"] = {METRIC: {"clusters": numbers, "sha256": digest}}
    kept = with_interval(section, claim(times=2))
    ends = paired_interval(100 * own, 200 * other, np.array([0, 0, 1, 2, 3, 4]))
    assert ends is not None
    assert kept["interval"] == {"low": ends.low, "high": ends.high, "queries": True}


def made_result(section: dict[str, Any]) -> dict[str, Any]:
    return {
        "table": "made",
        "title": "A made table",
        "text": None,
        "seeds": [0, 1, 2, 3, 4],
        "steps": {"a": 4, "b": 4},
        "sections": {"one": section},
        "environments": [{"world_size": 1, "device": "cpu", "packages": {"torch": "2.13.0"}}],
    }


def test_the_page_begins_with_the_claims() -> None:
    section = section_of([61.0, 60.0, 59.0, 60.0, 60.0], 5 * [20.0])
    section["claims"] = [
        with_interval(section, claim(times=2, plus=5)),
        with_interval(section, claim(text="It does not.", lower=True)),
    ]
    result = made_result(section)
    page = page_text([result], "figures")
    row = "| It points. | A made table | Pointing | 60.0 against 2 × 20.0 + 5 | +15.0 ["
    assert row in page
    assert page.index(row) < page.index("## A made table")
    assert page[page.index(row) :].split("\n")[0].endswith("] | held |")
    assert "| It does not. | A made table | Pointing | 60.0 against 20.0 | -40.0 [" in page
    few = copy.deepcopy(result)
    few["sections"]["one"] = section_of([3.0, 1.0, 5.0], 3 * [2.0])
    few["sections"]["one"]["claims"] = [with_interval(few["sections"]["one"], claim())]
    assert "3.00 against 2.00 | +1.00 | in 2 of 3 seeds |" in page_text([few], "figures")
    del section["claims"]  # results of before there were claims
    assert "What was expected" not in page_text([result], "figures")


def test_the_page_says_what_follows_before_the_tables() -> None:
    section = section_of([61.0, 60.0, 59.0], 3 * [20.0])
    page = page_text([made_result(section)], "figures")
    assert "What follows" not in page
    section["follows"] = "Use it where regions are the aim."
    page = page_text([made_result(section)], "figures")
    line = "- A made table: Use it where regions are the aim."
    assert page.index("## What follows") < page.index(line) < page.index("## A made table")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"row": "Nobody"}, "no row is called 'Nobody'"),
        ({"than": "Nobody"}, "no row is called 'Nobody'"),
        ({"metric": "loss"}, "'loss' is no column"),
        ({"row": "Without"}, "compares 'Without' with itself"),
    ],
)
def test_a_wrong_claim_is_refused(changed: dict[str, Any], message: str) -> None:
    content = {
        "title": "Pointing",
        "rows": {"With": "a", "Without": "b"},
        "columns": {METRIC: "Pointing"},
        "compare": "Without",
        "claims": [claim().model_dump() | changed],
    }
    with pytest.raises(ValueError, match=message):
        TableSection.model_validate(content)


def test_a_claim_without_a_reference_is_refused() -> None:
    content = {
        "title": "Pointing",
        "rows": {"With": "a", "Without": "b"},
        "columns": {METRIC: "Pointing"},
        "claims": [claim().model_dump()],
    }
    with pytest.raises(ValueError, match="needs `than`"):
        TableSection.model_validate(content)
