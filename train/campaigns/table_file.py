"""The file of a table, with its short forms: runs like another, shared rows, runs of every row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.messages import suggestion
from svilm_fast.core.nested import merge
from svilm_fast.train.campaigns.table import (
    Name,
    ResultTable,
    SectionHead,
    TableHead,
    TableRun,
)
from svilm_fast.train.config.load import read_recipe
from svilm_fast.train.config.recipes import FULL_TABLES, TABLES
from svilm_fast.train.config.yaml_file import DEEPEST

ROW = "row"  # the run of a row, in `each` and in `read`
RESERVED = (ROW, "out", "seed", "dir", "after")
LISTS = ("set", "command")  # of a run: those of the run below come first


class SectionFile(SectionHead):
    """A section as it is written: its rows may be labels of the table's `rows`.

    `read` holds the runs that each such row joins: `row`, the run of the row, or names of `each`.
    """

    rows: dict[str, Name | list[Name]] | list[str] | None = None
    read: list[Name] = Field(default_factory=lambda: [ROW], min_length=1)

    @field_validator("rows", mode="before")
    @classmethod
    def _labels_are_texts(cls, rows: Any) -> Any:
        for label in rows if isinstance(rows, list | dict) else ():
            if not isinstance(label, str):
                raise ValueError(f"a label is text: put {label!r} in quotes")
        return rows

    @model_validator(mode="after")
    def _labels_are_read(self) -> SectionFile:
        if isinstance(self.rows, dict):
            if "read" in self.model_fields_set:
                raise ValueError("read: rows with runs of their own leave nothing to read; drop it")
        elif self.rows == []:
            raise ValueError("rows: give at least one label, or leave it out for all rows")
        elif twice := [label for label, count in Counter(self.rows).items() if count > 1]:
            raise ValueError(f"rows: {twice[0]!r} occurs twice")
        return self


class TableFile(TableHead):
    """A table as it is written.

    - `like: NAME` in a run: what NAME gives holds here too. Its `set` and `command` come first; a
      setting that is given again replaces it.
    - `rows: {LABEL: RUN}` are the rows of every section that has none. A section may list some of
      the labels.
    - `each: {NAME: run}` are made once for every RUN of `rows`, and are called `RUN_NAME`. In
      `weights_from`, `start_from` and `after`, `row` stands for RUN and a name of `each` for
      `RUN_` and that name; so do `{row}` and `{NAME}` in texts. A run of `each` that neither a
      section nor a run needs is left out.
    - `compare: LABEL` holds for every section that has this row and no `compare`.
    """

    runs: dict[Name, TableRun] = Field(min_length=1)
    rows: dict[str, Name] = Field(default_factory=dict)
    each: dict[Name, TableRun] = Field(default_factory=dict)
    compare: str | None = None
    sections: dict[Name, SectionFile] = Field(min_length=1)

    def written_out(self) -> ResultTable:
        """Return the table in the long form. Raises ValueError with the place of a wrong name."""
        runs = _alike(self.runs, "runs")
        for label, run in self.rows.items():
            _known(f"rows.{label}", run, self.runs)
        made = self._runs_of_each()
        if both := sorted(runs.keys() & made.keys()):
            raise ValueError(f"each: makes {both[0]!r}, which is in `runs` too; rename one")
        runs |= made
        sections = {key: self._section(key, each) for key, each in self.sections.items()}
        needed = list(self.runs)
        for section in sections.values():
            for joined in section["rows"].values():
                needed += [joined] if isinstance(joined, str) else joined
        for name in needed:  # grows
            before = [runs[name][key] for key in TableRun.BEFORE if runs.get(name, {}).get(key)]
            needed += [each for each in before if each not in needed]
        head = {key: getattr(self, key) for key in TableHead.model_fields}
        kept = {name: run for name, run in runs.items() if name in needed}
        return ResultTable(**head, runs=kept, sections=sections)

    def _runs_of_each(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        every = _alike(self.each, "each")
        for name in self.each:
            if name in RESERVED:
                raise ValueError(f"each.{name}: this name has a meaning; choose another")
            try:
                TableRun.model_validate(every[name])
            except ValidationError as error:
                raise ValueError(f"each.{name}: {_first_message(error)}") from error
        for run in dict.fromkeys(self.rows.values()):
            names = {ROW: run} | {name: f"{run}_{name}" for name in every}
            for name, spec in every.items():
                if names[name] in found:
                    raise ValueError(f"each: makes {names[name]!r} twice; rename a run")
                keys = [key for key in TableRun.BEFORE if spec.get(key)]
                if not keys:
                    raise ValueError(f"each.{name}: needs `after: {ROW}`, or another run before it")
                before = _known(f"each.{name}.{keys[0]}", spec[keys[0]], names)
                made = {key: _placed(value, names) for key, value in spec.items()}
                found[names[name]] = made | {keys[0]: names[before]}
        return found

    def _section(self, key: str, section: SectionFile) -> dict[str, Any]:
        place = f"sections.{key}"
        content = section.model_dump(exclude_unset=True, exclude={"read"})
        if not isinstance(section.rows, dict):
            labels = list(self.rows) if section.rows is None else section.rows
            if not labels:
                raise ValueError(f"{place}: give `rows`, here or for the whole table")
            for label in labels:
                _known(f"{place}.rows", label, self.rows)
            for name in section.read:
                _known(f"{place}.read", name, [ROW, *self.each])
            content["rows"] = {
                label: [
                    self.rows[label] if name == ROW else f"{self.rows[label]}_{name}"
                    for name in section.read
                ]
                for label in labels
            }
        if self.compare is not None:
            every = [label for each in self.sections.values() for label in each.rows or ()]
            _known("compare", self.compare, [*self.rows, *every])
            if self.compare in content["rows"]:
                content.setdefault("compare", self.compare)
        return content


def layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a table's file over that of its `base`.

    `prepare` and `set` of the base come first. So do `set` and `command` of a run that both have.
    Rows that map to runs replace the `rows` and `read` of a section of the base.
    """
    found = _joined(below, above, ("prepare", "set"))
    sections, below_sections = above.get("sections"), below.get("sections")
    if isinstance(sections, Mapping) and isinstance(below_sections, Mapping):
        for key, section in sections.items():
            if isinstance(section, Mapping) and isinstance(section.get("rows"), Mapping):
                kept = dict(below_sections.get(key) or {})
                kept = {name: each for name, each in kept.items() if name not in ("rows", "read")}
                found["sections"][key] = merge(kept, section)
    for key in ("runs", "each"):
        first, then = below.get(key), above.get(key)
        if isinstance(first, Mapping) and isinstance(then, Mapping):
            found[key] = {**first, **then} | {
                name: _joined(first[name], then[name], LISTS)
                for name in first.keys() & then.keys()
                if isinstance(first[name], Mapping) and isinstance(then[name], Mapping)
            }
    return found


def _joined(
    below: Mapping[str, Any], above: Mapping[str, Any], lists: tuple[str, ...]
) -> dict[str, Any]:
    found = merge(below, above)
    for key in lists:
        first, then = below.get(key), above.get(key)
        if isinstance(first, list) and isinstance(then, list):
            if key == "set":
                again = {str(text).partition("=")[0] for text in then}
                first = [text for text in first if str(text).partition("=")[0] not in again]
            found[key] = [*first, *then]
    return found


def _alike(runs: Mapping[str, TableRun], place: str) -> dict[str, dict[str, Any]]:
    """Return what each run gives, over what the run that it is `like` gives."""
    found = {}
    for name, run in runs.items():
        chain = [run.model_dump(exclude_unset=True)]
        names = [name]
        while (model := chain[-1].get("like")) is not None:
            _known(f"{place}.{names[-1]}.like", model, runs)
            names.append(model)
            if model in names[:-1]:
                raise ValueError(f"{place}: runs are like each other: {' -> '.join(names)}")
            if len(names) > DEEPEST:
                raise ValueError(f"{place}.{name}: more than {DEEPEST} runs are like another")
            chain.append(runs[model].model_dump(exclude_unset=True))
        content: dict[str, Any] = {}
        for each in reversed(chain):
            content = _joined(content, each, LISTS)
        content.pop("like", None)
        found[name] = content
    return found


def _placed(value: Any, names: Mapping[str, str]) -> Any:
    """Write the names of the runs of a row into `{row}` and `{NAME}`."""
    if isinstance(value, list):
        return [_placed(each, names) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\{(\w+)\}", lambda found: f"{{{names.get(found[1], found[1])}}}", value)


def _known(place: str, name: str, known: Mapping[str, Any] | list[str]) -> str:
    if name not in known:
        names = dict.fromkeys(known)
        raise ValueError(f"{place}: there is no {name!r}; {suggestion(name, names, label='names')}")
    return name


def _first_message(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def table_names() -> list[str]:
    """Return the names of the packaged tables, those at the scale of the papers last."""
    full = (f"full/{path.stem}" for path in FULL_TABLES.glob("*.yaml"))
    return [*sorted(path.stem for path in TABLES.glob("*.yaml")), *sorted(full)]


def read_table(name: str) -> tuple[str, ResultTable]:
    """Read a table by path or by the name of a packaged one; returns its name and content.

    Raises ConfigError for an unknown name and for a file that is not a table.
    """
    path = Path(name)
    if not path.is_file():
        path = (TABLES.parent if name.startswith("full/") else TABLES) / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no table {name!r}; {suggestion(name, table_names(), label='tables')}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,60}", path.stem):
        raise ConfigError(
            f"{path}: the name of a table has lower-case letters, digits and _, at most 61"
        )
    try:
        content = read_recipe(str(path), layer=layered)
        return path.stem, TableFile.model_validate(content).written_out()
    except ValidationError as error:
        first = error.errors()[0]
        tags = ("dict[", "list[", "constrained-str", "[key]")  # of pydantic, not of the file
        loc = (str(part) for part in first["loc"] if not str(part).startswith(tags))
        place = ".".join(loc)
        raise ConfigError(
            f"{path}: {place + ': ' if place else ''}{_first_message(error)}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
