"""The jobs of a table: every run with every seed, and the identity of its inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import svilm_fast
from svilm_fast.train.campaigns.table import ResultTable, TableRun
from svilm_fast.train.config.load import read_recipe
from svilm_fast.train.config.run_files import RunFiles


@dataclass(frozen=True)
class TableJob:
    """A run with a seed.

    identity: hash of the version, the recipe, the settings, the seed, and the same of the run
    before it. before: that run. folder: the run's. arguments: of `svilm`.
    trains: whether it is a training, with metrics. metrics: file with those of a command.
    """

    name: str
    seed: int
    identity: str
    before: TableJob | None
    folder: Path
    arguments: tuple[str, ...]
    trains: bool = True
    metrics: Path | None = None

    @property
    def label(self) -> str:
        """Names the job in messages and files."""
        return f"{self.name}_seed_{self.seed}"

    def chain(self) -> list[TableJob]:
        """Return the runs before this one, in order, and this one."""
        return [*(self.before.chain() if self.before else []), self]


def table_jobs(
    table: ResultTable, out: Path, seeds: Iterable[int]
) -> dict[tuple[str, int], TableJob]:
    """Return the job of every run and seed; runs with a fixed seed share one job.

    Raises ConfigError for an unknown recipe.
    """
    jobs: dict[tuple[str, int], TableJob] = {}
    made: dict[str, TableJob] = {}
    for seed in seeds:
        for name in table.runs:
            before: TableJob | None = None
            for link in reversed(list(table.chain(name))):
                spec = _with_shared_settings(table, table.runs[link])
                own = seed if spec.seed is None else spec.seed
                identity = _identity(link, table, spec, own, before)
                if identity not in made:
                    made[identity] = _job(link, own, identity, spec, before, out)
                before = made[identity]
            assert before is not None
            jobs[name, seed] = before
    return jobs


def _with_shared_settings(table: ResultTable, spec: TableRun) -> TableRun:
    if spec.config is None or not table.set:
        return spec
    return spec.model_copy(update={"set": [*table.set, *spec.set]})


def _job(
    name: str, seed: int, identity: str, spec: TableRun, before: TableJob | None, out: Path
) -> TableJob:
    folder = out / "runs" / f"{name}_seed_{seed}_{identity[:8]}"
    places = {"{out}": out, "{seed}": seed, "{dir}": folder}
    if before is not None:
        places["{after}"] = before.folder
        places |= {f"{{{link.name}}}": link.folder for link in before.chain()}

    def filled(text: str) -> str:
        for mark, value in places.items():
            text = text.replace(mark, str(value))
        return text

    if spec.command is not None:
        arguments = tuple(map(filled, spec.command))
        metrics = None if spec.metrics is None else Path(filled(spec.metrics))
        return TableJob(name, seed, identity, before, folder, arguments, False, metrics)
    if spec.weights_from is None:
        command = ["train", *([] if spec.task is None else ["--task", spec.task])]
        if spec.start_from is not None:
            assert before is not None
            command += ["--weights-from", str(RunFiles(before.folder).portable)]
    else:
        assert before is not None
        assert spec.task is not None
        command = ["finetune", spec.task, "--weights-from", str(before.folder)]
    assert spec.config is not None
    settings = [f"run.dir={folder}", f"run.name={name}", f"run.seed={seed}"]
    arguments = (
        *command,
        "--config",
        spec.config,
        "--auto-resume",
        *map(filled, spec.set),
        *settings,
    )
    return TableJob(name, seed, identity, before, folder, arguments)


def _identity(
    name: str, table: ResultTable, spec: TableRun, seed: int, before: TableJob | None
) -> str:
    content = {
        "name": name,
        "version": svilm_fast.__version__,
        "prepare": table.prepare,
        "recipe": read_recipe(spec.config) if spec.config is not None else None,
        "run": spec.model_dump(mode="json", exclude_none=True, exclude={"clips"}),
        "seed": seed,
        "before": before.identity if before is not None else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
