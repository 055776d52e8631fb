"""`svilm ablate`: runs a table of recipes over seeds. `svilm results`: writes its page."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.core.text import counted

if TYPE_CHECKING:
    from svilm_fast.train.campaigns.jobs import TableJob
    from svilm_fast.train.campaigns.store import ResultStore
    from svilm_fast.train.campaigns.table import ResultTable

MARK = "campaign.json"


def ablate(
    table: Annotated[
        str | None, typer.Argument(help="a packaged table or a YAML file; none: list the tables")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of runs and results; tables with the same folder share equal runs "
            "[default: runs/ablations/TABLE]"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs at a time")] = 1,
    gpus: Annotated[
        str, typer.Option(help="indices of GPUs, as in 0,1,2: each run gets one of them")
    ] = "",
    seeds: Annotated[str, typer.Option(help="seeds, as in 0,1,2 [default: the table's]")] = "",
    section: Annotated[
        list[str] | None,
        typer.Option(help="only this section and the runs it needs; may be repeated"),
    ] = None,
    shared: Annotated[
        Path | None,
        typer.Option(
            "--results",
            help="folder that also keeps the result of every run, for example under version "
            "control; what is found there is not run again",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="result file [default: OUT/TABLE.json]")
    ] = None,
    collect: Annotated[
        bool, typer.Option("--collect", help="write the table from stored results; run nothing")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="check the recipes, print commands and predicted cost"),
    ] = False,
) -> None:
    """Run a table of recipes over seeds, resume it where it stopped, and write its figures.

    Exit codes: 0 done; 1 a run failed, the others are kept; 2 bad input; 130 stopped by a signal,
    and every run that was going on can be resumed by the same command.
    """
    from svilm_fast.train.campaigns.table_file import read_table, table_names

    if table is None:
        print("\n".join(table_names()))
        return
    if collect and (dry_run or gpus or jobs > 1):
        raise UserError("--collect runs nothing: drop --dry-run, --gpus and --jobs")
    from svilm_fast.train.campaigns.jobs import table_jobs
    from svilm_fast.train.campaigns.results import gather
    from svilm_fast.train.campaigns.store import ResultStore

    name, content = read_table(table)
    content = content.only(section) if section else content
    chosen = _seeds(seeds) or content.seeds
    folder = (out or Path("runs") / "ablations" / name).resolve()
    places = table_jobs(content, folder, chosen)
    unique = list(dict.fromkeys(link for job in places.values() for link in job.chain()))
    store = ResultStore(folder, shared)
    if dry_run:
        _print_plan(content, store, unique)
        return
    if collect:
        _check_complete(store, unique)
        if json_file is None:
            _claim(folder, name)
    else:
        _claim(folder, name)
        _run(name, content, store, unique, jobs, _gpus(gpus))
    again = ["svilm", "ablate", table]
    again += [word for each in section or () for word in ("--section", each)]
    again += ["--seeds", ",".join(map(str, chosen))] if seeds else []
    result = gather(name, content, places, store, chosen, shlex.join(again))
    target = json_file or folder / f"{name}.json"
    _write_result(target, result)
    for written in result["sections"].values():
        _print_section(written)
    print(f"wrote {target}")


def _run(
    name: str,
    content: ResultTable,
    store: ResultStore,
    unique: list[TableJob],
    jobs: int,
    gpus: list[str],
) -> None:
    """Make the data and run what has no result. Exits with code 1 if a run failed."""
    from svilm_fast.train.campaigns.execute import run_jobs
    from svilm_fast.train.folder.lock import locked

    with locked(store.out):
        if store.needed(unique):
            _prepare(content.prepared(), store.out)
        with _progress(f"runs of {name}", len(unique)) as advance:
            failures = run_jobs(unique, store, len(gpus) or jobs, gpus, advance)
    if failures:
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
        raise typer.Exit(1)


def _check_complete(store: ResultStore, unique: list[TableJob]) -> None:
    """Raise UserError if a run has no result."""
    missing = [job.label for job in unique if store.find(job) is None]
    if missing:
        searched = " or ".join(str(place) for place in (store.kept, store.shared) if place)
        raise UserError(
            f"no result of {len(missing)} of {counted(len(unique), 'run')} in {searched}, "
            f"first {missing[0]} (a result of other settings or of another version does not "
            "count): run the command without --collect, or choose runs by --seeds and --section"
        )


def _print_plan(content: ResultTable, store: ResultStore, jobs: list[TableJob]) -> None:
    """Check every recipe; print the commands and, where the table names GPUs, predicted hours."""
    from svilm_fast.train.campaigns.cost import PREDICTED, checked_config, gpu_hours

    for arguments in content.prepared():
        print("svilm", *_filled(arguments, store.out))
    needed = store.needed(jobs)
    found: dict[str, float | None] = {}  # by run: the seed changes no cost
    total, unknown = 0.0, 0
    for job in jobs:
        config = checked_config(content, job)
        state = "to do" if job in needed else "finished"
        if content.gpus is not None and config is not None:
            if job.name not in found:
                found[job.name] = gpu_hours(content, job, config)
            hours = found[job.name]
            total, unknown = total + (hours or 0.0), unknown + (hours is None)
            state += ", hours unknown" if hours is None else f", {hours:,.1f} GPU hours"
        print(f"[{state}] svilm {' '.join(job.arguments)}")
    if content.gpus is not None:
        print(f"{total:,.0f} GPU hours in total on {content.gpus} GPUs; {PREDICTED}")
    if unknown:
        print(f"not in the total: {counted(unknown, 'run')} whose classes are those of their data")


def results(
    files: Annotated[list[Path], typer.Argument(help="result files of `svilm ablate`")],
    out: Annotated[Path, typer.Option(help="page")] = Path("docs/results.md"),
    figures: Annotated[
        Path | None, typer.Option(help="folder of the pictures [default: figures beside OUT]")
    ] = None,
) -> None:
    """Write the page of results, with its pictures, from the JSON of tables."""
    from svilm_fast.core.earlier_result import check_replaceable
    from svilm_fast.core.files import write_atomically
    from svilm_fast.train.campaigns.page import HEADING, draw, page_text

    found = [_read_result(path) for path in files]
    check_replaceable(out, HEADING)
    pictures = figures or out.parent / "figures"
    for result in found:
        draw(result, pictures)
    relative = Path(*pictures.parts[len(out.parent.parts) :])
    if out.parent not in (pictures, *pictures.parents):
        relative = pictures.resolve()
    write_atomically(out, page_text(found, relative.as_posix()).encode())
    print(f"wrote {out} and the pictures in {pictures}")


@contextlib.contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[Any], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    from svilm_fast.core.console import Console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task(description, total=total)
        yield lambda job: bar.advance(shown)


def _seeds(text: str) -> list[int]:
    """Read `0,1,2`. Raises UserError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise UserError(f"--seeds {text!r}: give different whole numbers, as in 0,1,2")
    return [int(part) for part in parts]


def _gpus(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _claim(folder: Path, table: str) -> None:
    """Create the campaign's folder, or add a table. Raises UserError if it is something else."""
    from svilm_fast.core.files import write_json

    mark = folder / MARK
    tables: list[str] = []
    if mark.is_file():
        written = json.loads(mark.read_bytes())
        # A folder of before tables could share one names a single table.
        tables = written["tables"] if "tables" in written else [written["table"]]
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} has content that is not of `svilm ablate`; give an empty folder with --out"
        )
    if table not in tables:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(mark, {"tables": [*tables, table]})


def _prepare(commands: list[list[str]], folder: Path) -> None:
    """Run the commands that make the data; each is repeated until it has succeeded once."""
    from svilm_fast.core.files import write_json

    record = folder / "prepared.json"
    done: list[list[str]] = json.loads(record.read_bytes()) if record.is_file() else []
    for command in commands:
        if command in done:
            continue
        words = _filled(command, folder)
        for other in done:
            if (made := _target(command)) is not None and made == _target(other):
                raise UserError(
                    f"{made.replace('{out}', str(folder))} was made by "
                    f"`svilm {' '.join(_filled(other, folder))}`, and this table needs "
                    f"`svilm {' '.join(words)}`; give another --out"
                )
        code = subprocess.run([sys.executable, "-m", "svilm_fast.cli", *words]).returncode
        if code != 0:
            raise UserError(f"`svilm {' '.join(words)}` failed with exit code {code}")
        done.append(command)
        write_json(record, done)


def _filled(command: list[str], folder: Path) -> list[str]:
    return [text.replace("{out}", str(folder)) for text in command]


def _target(command: list[str]) -> str | None:
    """Return the folder or file that a command of `prepare` makes, None if it names none."""
    return command[command.index("--out") + 1] if "--out" in command[:-1] else None


def _write_result(path: Path, result: dict[str, Any]) -> None:
    from svilm_fast.core.earlier_result import check_replaceable
    from svilm_fast.core.files import write_json

    check_replaceable(path, f'"table": "{result["table"]}"')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def _read_result(path: Path) -> dict[str, Any]:
    from svilm_fast.train.campaigns.results import SCHEMA

    try:
        found = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or "sections" not in found:
        raise UserError(f"{path} is not a result of `svilm ablate` with schema {SCHEMA}")
    return found


def _print_section(section: dict[str, Any]) -> None:
    from rich.table import Table

    from svilm_fast.core.console import Console
    from svilm_fast.train.campaigns.results import rendered

    shown = Table(title=section["title"], title_justify="left")
    shown.add_column("")
    for heading in section["columns"].values():
        shown.add_column(heading)
    for label in section["rows"]:
        shown.add_row(label, *(rendered(section, label, each) for each in section["columns"]))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(shown)
