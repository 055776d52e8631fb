"""The jobs of a table: every run with every seed, and the identity of its inputs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import svilm_fast
from svilm_fast.data.world.write import FORMAT
from svilm_fast.train.campaigns.table import ResultTable, TableRun, makes
from svilm_fast.train.config.load import load_config, read_recipe
from svilm_fast.train.config.run_files import RunFiles

_OUT = "OUT-OF-THE-CAMPAIGN"


@dataclass(frozen=True)
class TableJob:
    """A run with a seed.

    identity: hash of everything that decides the result: the versions of the package and of the
    rendered world, the commands that make the run's data, its settings, the seed, and the identity
    of the run before it. Runs of several tables with the same identity share one result.
    before: that run. folder: the run's. arguments: of `svilm`.
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
        """Names the job in messages."""
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
                identity = _identity(table.prepare, spec, own, before)
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
    folder = out / "runs" / _folder_name(spec, seed, identity)
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
    settings = [f"run.dir={folder}", f"run.name={folder.name}", f"run.seed={seed}"]
    arguments = (
        *command,
        "--config",
        spec.config,
        "--auto-resume",
        *map(filled, spec.set),
        *settings,
    )
    return TableJob(name, seed, identity, before, folder, arguments)


def _folder_name(spec: TableRun, seed: int, identity: str) -> str:
    """Return a name that tells what runs there and is the same in every table."""
    words = [spec.config or "", spec.task or ""] if spec.command is None else spec.command[:2]
    kind = "_".join(re.sub(r"[^a-z0-9]+", "_", Path(word).stem.lower()) for word in words if word)
    return f"{kind}_seed_{seed}_{identity[:12]}"


def _identity(
    prepare: Sequence[list[str]], spec: TableRun, seed: int, before: TableJob | None
) -> str:
    places = {"{seed}": str(seed)}
    if before is not None:
        places |= {f"{{{link.name}}}": link.identity for link in before.chain()}
        places["{after}"] = before.identity

    def filled(texts: Iterable[str]) -> list[str]:
        found = []
        for text in texts:
            for mark, value in places.items():
                text = text.replace(mark, value)
            found.append(text)
        return found

    content: dict[str, Any] = {
        "version": svilm_fast.__version__,
        "world": FORMAT,
        "seed": seed,
        "before": before.identity if before is not None else None,
        "start": [spec.weights_from is not None, spec.start_from is not None],
    }
    if spec.command is not None:
        content["command"] = filled(spec.command)
        content["metrics"] = None if spec.metrics is None else filled([spec.metrics])
    elif spec.weights_from is not None:
        assert spec.config is not None
        # The model's settings are those of the run before, so the recipe cannot be completed here.
        content |= {"task": spec.task, "recipe": read_recipe(spec.config), "set": filled(spec.set)}
    else:
        # Complete settings: a row that sets a default is the row that leaves it out.
        places |= {"{out}": _OUT, "{dir}": "DIR"}
        settings = filled(spec.set)
        config = load_config(spec.config, settings, spec.task).model_dump(mode="json")
        for place in ("name", "dir", "seed"):
            del config["run"][place]
        content["config"] = config
    text = json.dumps(content, sort_keys=True)
    content["prepare"] = makes(prepare, text.replace(_OUT, "{out}"))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
