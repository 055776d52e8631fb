"""The file of a table: runs, the rows and columns that read them, and the seeds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import (
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from svilm_fast.core.errors import ConfigError
from svilm_fast.core.messages import suggestion
from svilm_fast.core.settings import Count, Settings

# Names folders and files.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,60}$")]
_PREPARED = re.compile(r"\{out\}/([\w.-]+)")
Seed = Annotated[int, Field(ge=0, le=2**31)]


class TableRun(Settings):
    """A training run, or another command, once for each seed.

    In `set`, `command` and `metrics`, `{out}` is the folder of the campaign, `{seed}` the seed,
    `{dir}` the folder of this run, `{after}` that of the run which `after` names, and `{NAME}` that
    of any run NAME which comes before it.
    """

    BEFORE: ClassVar = ("weights_from", "start_from", "after")  # each names the run before

    config: str | None = Field(None, description="recipe: a YAML file or a packaged name")
    task: str | None = Field(None, description="task; null: the recipe's")
    weights_from: Name | None = Field(
        None, description="run whose model and weights this one starts from (`svilm finetune`)"
    )
    start_from: Name | None = Field(
        None,
        description="run whose weights this one starts from, with the settings of its own recipe "
        "(`svilm train --weights-from`)",
    )
    after: Name | None = Field(None, description="run that must be finished before")
    command: list[str] | None = Field(
        None, description="arguments of `svilm`, for a run that trains nothing"
    )
    metrics: str | None = Field(
        None, description="JSON file that the command writes, whose numbers are its metrics"
    )
    like: Name | None = Field(None, description="run whose entries hold here too (`TableFile`)")
    clips: Count | None = Field(
        None, description="training clips, from which --dry-run predicts the cost of epochs"
    )
    seed: Seed | None = Field(None, description="of every repetition; null: the table's seeds")
    set: list[str] = Field(default_factory=list, description="settings, as KEY=VALUE")

    @model_validator(mode="after")
    def _one_kind(self) -> TableRun:
        if self.like is not None:
            return self  # checked when written out
        if (self.config is None) == (self.command is None):
            raise ValueError("give config (the recipe of a training) or command, not both")
        if self.command is not None and (
            self.task or self.weights_from or self.start_from or self.set
        ):
            raise ValueError("command excludes task, weights_from, start_from and set")
        if self.metrics is not None and self.command is None:
            raise ValueError("metrics needs command: a training has its own")
        if self.weights_from is not None and self.task is None:
            raise ValueError("weights_from needs task: the one that is fine-tuned")
        if sum(getattr(self, key) is not None for key in self.BEFORE) > 1:
            raise ValueError(
                "weights_from, start_from and after exclude each other: each names the run before"
            )
        return self

    @property
    def before(self) -> str | None:
        """The name of the run that must be finished before."""
        return self.weights_from or self.start_from or self.after


class Claim(Settings):
    """What a section is expected to show: a row above `times` another row plus `plus`."""

    text: str = Field(description="the sentence, as it stands on the page")
    metric: str = Field(description="a column of the section")
    row: str
    than: str | None = Field(None, description="the other row; null: the section's `compare`")
    times: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    plus: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    lower: bool = Field(False, description="the row is expected below, not above")


class SectionHead(Settings):
    """What a section holds beside its rows."""

    title: str
    text: str | None = Field(None, description="what the section shows")
    follows: str | None = Field(None, description="what follows, for the head of the page")
    columns: dict[str, str] = Field(min_length=1, description="metric and heading of each column")
    compare: str | None = Field(
        None, description="label of the row that the others are compared with, seed by seed"
    )
    claims: list[Claim] = Field(default_factory=list, description="what it is expected to show")


class TableSection(SectionHead):
    """A part of the page: rows are runs, columns are metrics."""

    rows: dict[str, Annotated[list[Name], Field(min_length=1)]] = Field(
        min_length=1, description="label of each row, and its run or the runs that it joins"
    )

    @field_validator("rows", mode="before")
    @classmethod
    def _one_run_is_a_list(cls, rows: Any) -> Any:
        if not isinstance(rows, dict):
            return rows
        return {label: [run] if isinstance(run, str) else run for label, run in rows.items()}

    @model_validator(mode="after")
    def _row_exists(self) -> TableSection:
        if self.compare is not None and self.compare not in self.rows:
            raise ValueError(f"compare: no row is called {self.compare!r}")
        for claim in self.claims:
            than = claim.than or self.compare
            if than is None:
                raise ValueError(f"claims: {claim.text!r} needs `than`: there is no `compare`")
            for label in (claim.row, than):
                if label not in self.rows:
                    raise ValueError(f"claims: no row is called {label!r}")
            if claim.metric not in self.columns:
                raise ValueError(f"claims: {claim.metric!r} is no column of the section")
            if claim.row == than:
                raise ValueError(f"claims: {claim.text!r} compares {than!r} with itself")
        return self


class TableHead(Settings):
    """What a table holds beside its runs and sections.

    `prepare` holds the arguments of `svilm` commands that make the data, once, with `{out}`. `set`
    holds settings of every training; those of a run follow, and win.
    """

    title: str
    text: str | None = None
    seeds: list[Seed] = Field(min_length=1)
    gpus: Count | None = Field(
        None, description="H100 GPUs of a run, for which --dry-run predicts the cost; null: none"
    )
    prepare: list[list[str]] = Field(default_factory=list)
    set: list[str] = Field(default_factory=list, description="settings, as KEY=VALUE")


class ResultTable(TableHead):
    """A table, with every run and every row written out."""

    runs: dict[Name, TableRun] = Field(min_length=1)
    sections: dict[Name, TableSection] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> ResultTable:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: each must occur once, found {self.seeds}")
        for name, run in self.runs.items():
            self._check(f"runs.{name}", run.before)
        for name, section in self.sections.items():
            for label, joined in section.rows.items():
                place = f"sections.{name}.rows.{label}"
                for run_name in joined:
                    self._check(place, run_name)
                    run = self.runs[run_name]
                    if run.command is not None and run.metrics is None:
                        raise ValueError(f"{place}: {run_name!r} is a command and has no metrics")
        for name in self.runs:
            list(self.chain(name))
        return self

    def _check(self, place: str, run: str | None) -> None:
        if run is not None and run not in self.runs:
            hint = suggestion(run, list(self.runs), label="runs")
            raise ValueError(f"{place}: there is no run {run!r}; {hint}")

    def only(self, sections: Sequence[str]) -> ResultTable:
        """Return the table with these sections and the runs that they need.

        Raises ConfigError for a section that does not exist.
        """
        for section in sections:
            if section not in self.sections:
                hint = suggestion(section, list(self.sections), label="sections")
                raise ConfigError(f"--section {section}: {hint}")
        kept = {name: each for name, each in self.sections.items() if name in sections}
        read = {run for each in kept.values() for joined in each.rows.values() for run in joined}
        needed = {link for run in read for link in self.chain(run)}
        runs = {name: run for name, run in self.runs.items() if name in needed}
        return self.model_copy(update={"sections": kept, "runs": runs})

    def prepared(self) -> list[list[str]]:
        """Return the commands of `prepare` whose data the runs read."""
        texts = [*self.set, *(text for run in self.runs.values() for text in run.set)]
        texts += [text for run in self.runs.values() for text in run.command or ()]
        return makes(self.prepare, " ".join(texts))

    def chain(self, name: str) -> Iterator[str]:
        """Yield a run and those before it. Raises ValueError if they form a cycle."""
        seen: list[str] = []
        following: str | None = name
        while following is not None:
            if following in seen:
                raise ValueError(f"runs wait for each other: {' -> '.join([*seen, following])}")
            seen.append(following)
            yield following
            following = self.runs[following].before


def makes(prepare: Sequence[list[str]], text: str) -> list[list[str]]:
    """Return the commands that name a `{out}/NAME` of the text, or what such commands name.

    A command that names none is always among them.
    """
    names = set(_PREPARED.findall(text))
    mentioned = [set(_PREPARED.findall(" ".join(command))) for command in prepare]
    while more := set().union(*(each for each in mentioned if each & names)) - names:
        names = names | more
    return [
        command
        for command, each in zip(prepare, mentioned, strict=True)
        if each & names or not each
    ]
