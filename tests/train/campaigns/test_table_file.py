"""Short forms of a table's file: what they stand for, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.campaigns.table_file import TableFile, layered, read_table
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
        "first": {"command": ["data", "convert", "--option", "a=1"], "metrics": "m.json"},
        "second": {"like": "first", "command": ["--option", "a=2"]},
    }
    section = {"title": "T", "rows": {"A": "second"}, "columns": {"m": "M"}}
    content = SHORT | {"runs": runs, "rows": {}, "each": {}, "compare": None}
    table = TableFile.model_validate(content | {"sections": {"one": section}}).written_out()
    assert table.runs["second"].command == [
        "data", "convert", "--option", "a=1", "--option", "a=2",
    ]  # fmt: skip
    assert table.runs["second"].metrics == "m.json"


def test_texts_of_each_name_the_runs_of_the_row(tmp_path: Path) -> None:
    after = {
        "after": "features",
        "command": ["probe", "--run", "{row}", "--read", "{features}", "--out", "{dir}", "{plain}"],
        "metrics": "{row}/m.json",
    }
    sections = {"answers": SHORT["sections"]["answers"] | {"read": ["late"]}}
    _, table = read_table(
        written(tmp_path, each=SHORT["each"] | {"late": after}, sections=sections)
    )
    late = table.runs["wide_late"]
    assert late.command == [
        "probe", "--run", "{wide}", "--read", "{wide_features}", "--out", "{dir}", "{plain}",
    ]  # fmt: skip
    assert late.metrics == "{wide}/m.json"


def test_a_run_of_each_is_made_for_a_section_or_a_run_that_names_it(tmp_path: Path) -> None:
    runs = SHORT["runs"] | {"last": {"config": "demo", "after": "wide_features"}}
    section = {"title": "T", "rows": {"A": ["plain", "plain_probe"]}, "columns": {"m": "M"}}
    _, table = read_table(written(tmp_path, runs=runs, sections={"one": section}, compare=None))
    assert set(table.runs) == {"plain", "wide", "last", "plain_probe", "wide_features"}


def test_runs_of_each_may_be_alike(tmp_path: Path) -> None:
    each = SHORT["each"] | {"again": {"like": "probe", "command": ["--name", "again"]}}
    sections = {"one": SHORT["sections"]["answers"] | {"read": ["again"]}}
    _, table = read_table(written(tmp_path, each=each, sections=sections))
    assert table.runs["plain_again"].command == ["probe", "action", "--name", "again"]
    assert table.runs["plain_again"].after == "plain"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"each": SHORT["each"] | {"row": PROBE}}, "each.row: this name has a meaning"),
        ({"rows": {"Plain": "plane"}}, "rows.Plain: there is no 'plane'; did you mean 'plain'"),
        ({"rows": {2: "plain"}}, "rows.2: Input should be a valid string"),
        ({"rows": {"Plain": ["plain"]}}, "rows.Plain: Input should be a valid string"),
        ({"rows": ["plain"]}, "rows: Input should be a valid dictionary"),
        ({"runs": {"plain": {"config": "demo"}}}, "rows.Wide: there is no 'wide'"),
        (
            {"runs": SHORT["runs"] | {"plain": {"like": "wide"}}},
            "runs: runs are like each other: plain -> wide -> plain",
        ),
        (
            {"runs": SHORT["runs"] | {"x": {"like": "plane"}}},
            "runs.x.like: there is no 'plane'; did you mean 'plain'",
        ),
        (
            {
                "runs": SHORT["runs"]
                | {f"r{k}": {"like": f"r{k + 1}"} for k in range(40)}
                | {"r40": {"config": "demo"}}
            },
            "runs.r0: more than 32 runs",
        ),
        (
            {"runs": SHORT["runs"] | {"wide_qa": {"config": "demo"}}},
            "each: makes 'wide_qa', which is in `runs` too",
        ),
        (
            {
                "rows": {"A": "plain", "B": "plain_x"},
                "runs": SHORT["runs"] | {"plain_x": {"like": "plain"}},
                "each": {"x_y": PROBE, "y": PROBE},
            },
            "each: makes 'plain_x_y' twice",
        ),
        (
            {"each": SHORT["each"] | {"qa": {"config": "demo", "task": "qa"}}},
            "each.qa: needs `after: row`",
        ),
        (
            {"each": SHORT["each"] | {"head": SHORT["each"]["head"] | {"after": "feature"}}},
            "each.head.after: there is no 'feature'; did you mean 'features'",
        ),
        ({"each": SHORT["each"] | {"x": {"afterr": "row"}}}, "each.x: unknown key 'afterr'"),
        (
            {"each": SHORT["each"] | {"x": {"like": "qa", "command": ["demo"]}}},
            "each.x: give config",
        ),
        ({"compare": "Plane"}, "compare: there is no 'Plane'; did you mean 'Plain'"),
        ({"compair": "Plain"}, "unknown key 'compair': did you mean 'compare'"),
    ],
)
def test_a_wrong_short_form_names_the_place(tmp_path: Path, changed: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_table(written(tmp_path, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": ["Narrow"]}, "sections.answers.rows: there is no 'Narrow'; names: Plain, Wide"),
        ({"rows": [4]}, "sections.answers.rows: a label is text: put 4 in quotes"),
        ({"rows": []}, "sections.answers: rows: give at least one label"),
        ({"rows": ["Wide", "Wide"]}, "sections.answers: rows: 'Wide' occurs twice"),
        ({"read": ["x"]}, "sections.answers.read: there is no 'x'; names: row, features"),
        ({"rows": {"A": 3}}, "sections.answers.rows.A: Input should be a valid string"),
        ({"read": "qa"}, "sections.answers.read: Input should be a valid list"),
        ({"rows": {"A": "plain"}}, "sections.answers: read: rows with runs of their own"),
    ],
)
def test_a_wrong_section_names_the_place(tmp_path: Path, changed: Any, message: str) -> None:
    sections = {"answers": SHORT["sections"]["answers"] | changed}
    with pytest.raises(ConfigError, match=message):
        read_table(written(tmp_path, sections=sections))


def test_a_base_comes_before_the_file(tmp_path: Path) -> None:
    base = {"seeds": [3, 4], "set": ["data.val=null", "training.steps=1"], "prepare": [["a"]]}
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(base | {"text": "Shared."}))
    for name in ("part", "part.yaml"):
        _, table = read_table(
            written(tmp_path, base=name, set=["training.steps=2"], prepare=[["b"]], seeds=[7])
        )
        assert table.set == ["data.val=null", "training.steps=2"]
        assert table.prepare == [["a"], ["b"]]
        assert (table.seeds, table.text) == ([7], "Shared.")


def test_a_packaged_part_is_a_base(tmp_path: Path) -> None:
    _, table = read_table(written(tmp_path, base="ablations/parts/world"))
    assert "data.val={out}/world/val" in table.set


def test_runs_of_a_base_are_made_longer() -> None:
    below = {"each": {"a": {"set": ["x=1", "y=1"], "config": "demo"}, "b": PROBE}}
    above = {"each": {"a": {"set": ["x=2"]}, "b": {"command": ["--name", "c"]}}}
    found = layered(below, above)["each"]
    assert found["a"] == {"set": ["y=1", "x=2"], "config": "demo"}
    assert found["b"] == PROBE | {"command": ["probe", "action", "--name", "c"]}


def test_rows_that_map_to_runs_replace_those_of_a_base(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(SHORT))
    sections = {"answers": {"rows": {"Other": "wide"}, "compare": None}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"base": "part", "sections": sections}))
    _, table = read_table(str(tmp_path / "own.yaml"))
    assert table.sections["answers"].rows == {"Other": ["wide"]}
    assert table.sections["answers"].title == "QA"


def test_bases_in_a_cycle_or_missing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("base: short\n")
    with pytest.raises(ConfigError, match=r"cycle: short.yaml -> part.yaml -> short.yaml"):
        read_table(written(tmp_path, base="part"))
    with pytest.raises(ConfigError, match=r"no configuration file 'gone'"):
        read_table(written(tmp_path, base="gone"))
    with pytest.raises(ConfigError, match=r"'prat'; did you mean 'part'\?"):
        read_table(written(tmp_path, base="prat"))
    with pytest.raises(ConfigError, match=r"did you mean 'ablations/parts/world'\?"):
        read_table(written(tmp_path, base="ablations/parts/wrold"))
    with pytest.raises(ConfigError, match=r"'shrt'; (?!did you mean 'short')"):
        read_table(written(tmp_path, base="shrt"))  # not the file itself
    with pytest.raises(ConfigError, match=r"shrt'; (?!did you mean '[^']*short')"):
        read_table(written(tmp_path, base=f"../{tmp_path.name}/shrt"))


@pytest.mark.parametrize("base", ["", ".", "/", "part/"])
def test_a_base_that_is_no_file_is_refused(tmp_path: Path, base: str) -> None:
    with pytest.raises(ConfigError, match=f"no configuration file '{base}'"):
        read_table(written(tmp_path, base=base))


def test_parts_of_tables_are_no_recipes() -> None:
    assert not any("parts" in name for name in preset_names())
