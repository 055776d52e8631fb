"""Off-line work: units that are done once, in any order, on any engine, with the same bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from svilm_fast.core.console import Console
from svilm_fast.data.offline.engines import OfflineEngine, run_jobs
from svilm_fast.data.offline.manifest import FinishedUnit, Manifest, digest
from svilm_fast.data.offline.outputs import OfflineError, Outputs, remove_partials

# (name of a unit, its content, settings, outputs) -> report as JSON. A pure function at the top
# level of a module: what it writes depends on these alone.
Work = Callable[[str, Any, Any, Outputs], dict[str, Any]]


@dataclass(frozen=True)
class Unit:
    """The input of one call of the work, usually of one shard.

    name: unique among the units. content: picklable. description: a JSON value of what decides the
    outputs; it holds no paths of this machine. weight: what the progress bar counts, e.g. samples.
    """

    name: str
    content: Any
    description: Any
    weight: int = 1


@dataclass(frozen=True)
class _Job:
    """A unit as an engine gets it; `done` is what the manifest says of it."""

    kind: str
    work: Work
    unit: Unit
    settings: Any
    folder: str
    input: str
    done: FinishedUnit | None

    @property
    def name(self) -> str:
        return self.unit.name

    def __call__(self) -> FinishedUnit:
        folder = Path(self.folder)
        if self.done is not None and self.done.is_intact(folder):
            return self.done
        outputs = Outputs(folder, self.kind)
        try:
            report = self.work(self.unit.name, self.unit.content, self.settings, outputs)
            return FinishedUnit(self.unit.name, self.input, outputs.publish(), report)
        finally:
            outputs.discard()


def do_work(
    kind: str,
    work: Work,
    units: Sequence[Unit],
    settings: Any,
    folder: Path,
    *,
    parameters: Mapping[str, Any],
    engine: OfflineEngine = OfflineEngine.LOCAL,
    workers: int | None = None,
    cpus: int = 1,
    gpu: bool = False,
    progress: bool | None = None,
) -> list[dict[str, Any]]:
    """Do `work` on every unit that the manifest of `folder` does not prove to be done.

    The manifest is `{kind}_manifest.jsonl`. Work that was killed continues when it is started again
    with the same parameters and units; the files are equal, byte for byte, to those of work that
    was not. Nothing is overwritten.

    Args:
        settings: what every call gets; picklable.
        folder: exists; with Ray, all nodes see it under this path.
        parameters: JSON values of everything in `settings` that decides the outputs.
        workers: units at a time (default: local, one per core; Ray, as many as the cluster has
            cores for).
        cpus: cores that one unit uses.
        gpu: whether Ray gives each unit a GPU of its own, where the cluster has any.
        progress: a bar on the terminal (default: where standard error is one).

    Returns the reports of all units, in their order. Raises OfflineError where the folder belongs
    to other work or a worker dies, and what `work` raises.
    """
    inputs = {unit.name: digest(unit.description) for unit in units}
    manifest = Manifest.open(folder / f"{kind}_manifest.jsonl", kind, parameters, inputs)
    try:
        remove_partials(folder, kind)
        jobs = [
            _Job(kind, work, unit, settings, str(folder.absolute()), inputs[unit.name], known)
            for unit in units
            for known in [manifest.done.get(unit.name)]
        ]
        weights = {unit.name: unit.weight for unit in units}
        shown = sys.stderr.isatty() if progress is None else progress
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        console = Console(stderr=True)
        with (
            Progress(*columns, TimeRemainingColumn(), console=console, disable=not shown) as bar,
            closing(run_jobs(jobs, engine, workers, cpus, gpu)) as results,
        ):
            task = bar.add_task(kind, total=sum(weights.values()))
            for done in results:
                _require_seen(done, folder)
                if manifest.done.get(done.unit) != done:
                    manifest.append(done)
                bar.advance(task, weights[done.unit])
        return [manifest.done[unit.name].report for unit in units]
    finally:
        remove_partials(folder, kind)
        manifest.close()


def _require_seen(done: FinishedUnit, folder: Path) -> None:
    for file in done.outputs:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            raise OfflineError(
                f"{path} was written by a worker and is not there: all nodes must share the folder"
            )
