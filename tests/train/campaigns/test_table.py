"""The file of a table: names that do not exist, cycles, packaged tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from svilm_fast.core.errors import ConfigError
from svilm_fast.train.campaigns.jobs import table_jobs
from svilm_fast.train.campaigns.table_file import read_table, table_names
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.recipes import preset_names

RUN = {"config": "demo", "task": "qa"}
CONTENT: dict[str, Any] = {
    "title": "Two runs",
    "seeds": [0, 1],
    "runs": {
        "first": {"config": "demo"},
        "second": {"config": "demo", "task": "qa", "weights_from": "first"},
    },
    "sections": {
        "one": {
            "title": "Retrieval",
            "rows": {"A": "first", "B": "second"},
            "columns": {"retrieval/t2v_R@1": "R@1"},
            "compare": "A",
        }
    },
}


def written(folder: Path, **changed: Any) -> str:
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(CONTENT | changed))
    return str(path)


def test_a_table_is_read(tmp_path: Path) -> None:
    name, table = read_table(written(tmp_path))
    assert name == "two"
    assert list(table.chain("second")) == ["second", "first"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"runs": {"a": RUN | {"weights_from": "b"}}}, "runs.a: there is no run 'b'"),
        ({"runs": {"a": {"config": "demo", "weights_from": "a"}}}, "weights_from needs task"),
        (
            {
                "runs": {
                    "first": RUN | {"weights_from": "second"},
                    "second": RUN | {"weights_from": "first"},
                }
            },
            "runs wait for each other: first -> second -> first",
        ),
        ({"runs": {"a": {"task": "qa"}}}, "give config"),
        ({"runs": {"a": RUN | {"command": ["doctor"]}}}, "command, not both"),
        ({"runs": {"first": {"command": ["doctor"]}, "second": RUN}}, "is a command"),
        ({"runs": {"a": {"config": "demo", "metrics": "x.json"}}}, "metrics needs command"),
        (
            {"runs": {"a": {"config": "demo", "start_from": "b", "after": "b"}}},
            "start_from and after exclude each other",
        ),
        ({"seeds": [1, 1]}, "seeds: each must occur once"),
        ({"seeds": []}, "seeds: .*at least 1"),
        ({"sections": {"one": CONTENT["sections"]["one"] | {"compare": "C"}}}, "row is called 'C'"),
        (
            {"sections": {"one": CONTENT["sections"]["one"] | {"rows": {"A": "x"}}}},
            "rows.A: there is no run 'x'",
        ),
        ({"runs": {"Bad Name": {"config": "demo"}}}, "pattern"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_a_wrong_table_names_the_place(tmp_path: Path, changed: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_table(written(tmp_path, **changed))


def test_a_section_prepares_what_its_runs_read() -> None:
    _, table = read_table("objectives")
    made = [command[command.index("--out") + 1] for command in table.only(["retrieval"]).prepared()]
    assert made == ["{out}/world"]
    assert table.prepared() == table.prepare


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="objectives"):
        read_table("objectivs")


def test_tables_are_no_recipes() -> None:
    assert not any("tables" in name or "full" in name for name in preset_names())


@pytest.mark.parametrize("name", table_names())
def test_the_recipes_and_settings_of_packaged_tables_are_valid(name: str, tmp_path: Path) -> None:
    _, table = read_table(name)
    for job in table_jobs(table, tmp_path, table.seeds[:1]).values():
        spec = table.runs[job.name]
        if spec.config is None:
            continue
        settings = [text for text in job.arguments if "=" in text]
        assert load_config(spec.config, settings, spec.task).run.seed == job.seed
