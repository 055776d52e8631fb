"""Means, ranges, differences, the page and its pictures."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from svilm_fast.cli import main
from svilm_fast.train.campaigns.page import HEADING, _drawn_columns, draw, page_text
from svilm_fast.train.campaigns.results import MARK, differences, rendered

SECTION: dict[str, Any] = {
    "title": "Retrieval",
    "text": None,
    "columns": {"retrieval/t2v_R@1": "R@1"},
    "compare": "Contrast",
    "rows": {
        "Contrast": {"run": "contrast", "values": {"retrieval/t2v_R@1": [40.0, 50.0, 45.0]}},
        "All": {"run": "all", "values": {"retrieval/t2v_R@1": [44.0, 49.0, 51.0]}},
    },
}
RESULT: dict[str, Any] = {
    "schema": 1,
    "table": "made",
    "title": "A made table",
    "text": None,
    "seeds": [0, 1, 2],
    "steps": {"contrast": 440, "all": 440},
    "sections": {"retrieval": SECTION},
    "environments": [{"world_size": 2, "device": "cpu", "packages": {"torch": "2.13.0"}}],
}


def test_differences_are_paired_by_seed() -> None:
    assert differences(SECTION, "All", "retrieval/t2v_R@1") == [4.0, -1.0, 6.0]
    assert differences(SECTION, "Contrast", "retrieval/t2v_R@1") is None


def test_cells() -> None:
    assert rendered(SECTION, "Contrast", "retrieval/t2v_R@1") == "45.0 (40.0 to 50.0)"
    assert (
        rendered(SECTION, "All", "retrieval/t2v_R@1") == "48.0 (44.0 to 51.0); +3.0 (-1.0 to +6.0)"
    )


def test_equal_values_have_no_range() -> None:
    section = copy.deepcopy(SECTION)
    section["rows"]["Contrast"]["values"] = {"retrieval/t2v_R@1": [40.0, 40.0, 40.0]}
    assert rendered(section, "Contrast", "retrieval/t2v_R@1") == "40.0"


def test_an_interval_replaces_the_range_and_is_marked() -> None:
    ends = {"low": 0.52, "high": 5.5, "queries": True}
    section = copy.deepcopy(SECTION)
    section["rows"]["All"]["intervals"] = {"retrieval/t2v_R@1": ends}
    cell = rendered(section, "All", "retrieval/t2v_R@1")
    assert cell == f"48.0 (44.0 to 51.0); +3.0 [+0.5 to +5.5] {MARK}"
    ends["low"] = -0.1
    assert MARK not in rendered(section, "All", "retrieval/t2v_R@1")
    page = page_text([RESULT | {"sections": {"retrieval": section}}], "figures")
    assert "seeds alone" not in page
    ends["queries"] = False
    page = page_text([RESULT | {"sections": {"retrieval": section}}], "figures")
    assert "Intervals are over seeds alone for: R@1." in page


def test_small_values_have_more_digits() -> None:
    section = copy.deepcopy(SECTION)
    for row in section["rows"].values():
        row["values"] = {"loss": [0.1234, 0.2, 0.3]}
    assert rendered(section, "Contrast", "loss") == "0.208 (0.123 to 0.300)"


def test_the_page_and_its_pictures(tmp_path: Path) -> None:
    source, page = tmp_path / "made.json", tmp_path / "docs" / "results.md"
    source.write_text(json.dumps(RESULT))
    page.parent.mkdir()
    for _ in range(2):  # a page of this command may be replaced
        with pytest.raises(SystemExit) as left:
            main(["results", str(source), "--out", str(page)])
        assert left.value.code == 0
    text = page.read_text()
    assert text.startswith(HEADING)
    assert "`svilm ablate made` runs this table again." in text
    assert "Steps of the last training |" in text
    assert "| All | 48.0 (44.0 to 51.0); +3.0 (-1.0 to +6.0) | 440 |" in text
    assert "(figures/results_made_retrieval.png)" in text
    picture = page.parent / "figures" / "results_made_retrieval.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_nothing_is_cut_off_at_the_edge_of_a_picture(tmp_path: Path, columns: int) -> None:
    from matplotlib.image import imread

    names = [f"metric_{number}" for number in range(columns)]
    compare = "Masked, then an unmasked phase"
    section = SECTION | {
        "columns": dict.fromkeys(names, "R@1"),
        "compare": compare,
        "rows": {
            compare: {"run": "a", "values": {key: [40.0, 50.0, 45.0] for key in names}},
            "All": {
                "run": "b",
                "values": {key: [44.0, 49.0, 51.0] for key in names},
                "intervals": {key: {"low": 0.5, "high": 5.0, "queries": True} for key in names},
            },
        },
    }
    (path,) = draw(RESULT | {"sections": {"retrieval": section}}, tmp_path)
    picture = imread(path)
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == picture[0, 0]).all()


def test_a_column_with_one_value_is_not_drawn() -> None:
    section = copy.deepcopy(SECTION)
    section["columns"]["chance"] = "Chance"
    for row in section["rows"].values():
        row["values"]["chance"] = [31.5, 31.5, 31.5]
    assert list(_drawn_columns(section)) == ["retrieval/t2v_R@1"]
    section["columns"] = {"chance": "Chance"}
    assert list(_drawn_columns(section)) == ["chance"]


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2}'])
def test_another_file_is_refused(tmp_path: Path, content: str, capsys: Any) -> None:
    source, page = tmp_path / "made.json", tmp_path / "results.md"
    source.write_text(content)
    with pytest.raises(SystemExit) as left:
        main(["results", str(source), "--out", str(page)])
    assert left.value.code == 2
    assert str(source) in capsys.readouterr().err
    assert not page.exists()


def test_a_page_of_somebody_else_stays(tmp_path: Path) -> None:
    source, page = tmp_path / "made.json", tmp_path / "results.md"
    source.write_text(json.dumps(RESULT))
    page.write_text("My notes\n")
    with pytest.raises(SystemExit) as left:
        main(["results", str(source), "--out", str(page)])
    assert left.value.code == 2
    assert page.read_text() == "My notes\n"
