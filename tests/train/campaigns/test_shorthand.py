"""Short forms of a table's file: what they stand for, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.campaigns.shorthand import expanded
from svilm_fast.train.campaigns.table import read_table
from svilm_fast.train.config.recipes import preset_names

PROBE = {"after": "row", "command": ["probe", "action"], "metrics": "{after}/probe.json"}
SHORT: dict[str, Any] = {
    "title": "Two rows",
    "seeds": [0],
    "runs": {
        "wide": {"like": "plain", "set": ["video.width=64", "training.steps=9"]},
        "plain": {"config": "demo", "set": ["data.val=null", "training.steps=5"]},
    },
    "rows": {"Plain": "plain", "Wide": "wide"},
    "compare": "Plain",
    "each": {
        "qa": {"config": "demo", "task": "qa", "weights_from": "row"},
        "probe": PROBE,
        "features": {"after": "row", "command": ["localize", "extract"]},
        "head": {"config": "demo", "task": "localization", "after": "features"},
    },
    "sections": {
        "answers": {"title": "QA", "read": ["row", "qa"], "columns": {"qa/accuracy": "Accuracy"}},
        "localization": {
            "title": "Heads",
            "read": ["head"],
            "rows": ["Wide"],
            "columns": {"m": "M"},
        },
    },
}


def written(folder: Path, name: str = "short", **changed: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(SHORT | changed))
    return str(path)


def test_every_row_is_followed_by_what_sections_read(tmp_path: Path) -> None:
    _, table = read_table(written(tmp_path))
    assert set(table.runs) == {
        "plain", "wide", "plain_qa", "wide_qa", "wide_features", "wide_head",
    }  # fmt: skip
    assert table.runs["wide_qa"].weights_from == "wide"
    assert list(table.chain("wide_head")) == ["wide_head", "wide_features", "wide"]
    assert table.sections["answers"].rows == {
        "Plain": ["plain", "plain_qa"],
        "Wide": ["wide", "wide_qa"],
    }
    assert table.sections["localization"].rows == {"Wide": ["wide_head"]}


def test_compare_is_of_the_sections_with_the_row_that_have_none(tmp_path: Path) -> None:
    first = SHORT["sections"]["answers"]
    sections = SHORT["sections"] | {"other": first | {"compare": "Wide"}}
    _, table = read_table(written(tmp_path, sections=sections))
    found = {name: each.compare for name, each in table.sections.items()}
    assert found == {"answers": "Plain", "localization": None, "other": "Wide"}


def test_a_run_like_another_replaces_its_settings(tmp_path: Path) -> None:
    _, table = read_table(written(tmp_path, sections={"answers": SHORT["sections"]["answers"]}))
    assert table.runs["wide"].config == "demo"
    assert table.runs["wide"].set == ["data.val=null", "video.width=64", "training.steps=9"]


def test_a_command_like_another_is_longer() -> None:
    runs = {
        "first": {"command": ["data", "compress", "--bits", "6"], "metrics": "m.json"},
        "second": {"like": "first", "command": ["--method", "gmm"]},
    }
    found = expanded({"runs": runs})["runs"]["second"]
    assert found == {
        "command": ["data", "compress", "--bits", "6", "--method", "gmm"],
        "metrics": "m.json",
    }


def test_a_long_form_stays_as_it_is() -> None:
    section = {"title": "T", "rows": {"A": "first"}, "columns": {"loss": "Loss"}}
    content = {"runs": {"first": {"config": "demo"}}, "sections": {"one": section}}
    assert expanded(content) == content


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"each": SHORT["each"] | {"row": PROBE}}, "each.row: .* choose another name"),
        ({"rows": {"Plain": "plane"}}, "rows.Plain: did you mean 'plain'"),
        ({"rows": {"Plain": ["plain"]}}, "rows.Plain: give a name, found list"),
        ({"rows": ["plain"]}, "rows: must be a mapping, found list"),
        ({"runs": {"plain": {"config": "demo"}}}, "rows.Wide: "),
        (
            {"runs": SHORT["runs"] | {"plain": {"like": "wide"}}},
            "like each other: plain -> wide -> plain",
        ),
        ({"runs": SHORT["runs"] | {"x": {"like": "plane"}}}, "runs.x.like: did you mean 'plain'"),
        (
            {"runs": SHORT["runs"] | {"wide_qa": {"config": "demo"}}},
            "runs.wide_qa: `each` makes this run too",
        ),
        (
            {"each": SHORT["each"] | {"qa": {"config": "demo", "task": "qa"}}},
            "each.qa: give weights_from, start_from or after",
        ),
        (
            {"each": SHORT["each"] | {"head": SHORT["each"]["head"] | {"after": "feature"}}},
            "each.head.after: did you mean 'features'",
        ),
        ({"compare": "Plane"}, "compare: did you mean 'Plain'"),
    ],
)
def test_a_wrong_short_form_names_the_place(tmp_path: Path, changed: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_table(written(tmp_path, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": ["Narrow"]}, "sections.answers.rows: names: Plain, Wide"),
        ({"rows": []}, "sections.answers.rows: give labels"),
        ({"read": ["q"]}, "sections.answers.read: "),
        ({"read": "qa"}, "sections.answers.read: give a list"),
    ],
)
def test_a_wrong_section_names_the_place(tmp_path: Path, changed: Any, message: str) -> None:
    sections = {"answers": SHORT["sections"]["answers"] | changed}
    with pytest.raises(ConfigError, match=message):
        read_table(written(tmp_path, sections=sections))


def test_a_base_comes_before_the_file(tmp_path: Path) -> None:
    base = {"seeds": [3, 4], "set": ["data.val=null", "training.steps=1"], "prepare": [["a"]]}
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(base | {"text": "Shared."}))
    name = written(tmp_path, base="part", set=["training.steps=2"], prepare=[["b"]], seeds=[7])
    _, table = read_table(name)
    assert table.set == ["data.val=null", "training.steps=2"]
    assert table.prepare == [["a"], ["b"]]
    assert (table.seeds, table.text) == ([7], "Shared.")


def test_bases_in_a_cycle_or_missing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("base: short\n")
    with pytest.raises(ConfigError, match=r"cycle: short.yaml -> part.yaml -> short.yaml"):
        read_table(written(tmp_path, base="part"))
    with pytest.raises(ConfigError, match=r"base: there is no file .*gone.yaml"):
        read_table(written(tmp_path, base="gone"))


def test_parts_of_tables_are_no_recipes() -> None:
    assert not any("parts" in name for name in preset_names())
