"""Measures what the gate finds: false alarms between equal versions, and planted slowdowns.

    python -m svilm_fast.bench.ab.study run --out bench/results/cpu-x86-64/ab_study.jsonl
    python -m svilm_fast.bench.ab.study report --out bench/results/cpu-x86-64/ab_study.jsonl

Each run is the shipped command on a scratch clone of the last commit. The head is one commit more,
whose library carries `ab_study_extra.json`: every call does 0, 3 or 5 units more than a hundred. A
run appends one line; a stopped study continues where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer

from svilm_fast.bench.ab import study_suite
from svilm_fast.bench.ab.checkouts import git
from svilm_fast.bench.ab.command import ab
from svilm_fast.bench.ab.study_report import write_report
from svilm_fast.bench.environment import ROOT
from svilm_fast.core.terminal import print

MODULE = "svilm_fast.bench.ab.study_suite"
LEVELS = (0, 3, 5)
AUTHOR = ("-c", "user.name=study", "-c", "user.email=study@localhost")


def extra_units(run: int, kind: str) -> dict[str, int]:
    """Units per hundred that the head does more, by id, in a run.

    `equal` runs have none. In `slow` runs a third of the ids has 3, a third 5 and a third none; the
    thirds turn with the runs.
    """
    ids = list(study_suite.benchmarks(None, torch.device("cpu")))
    if kind == "equal":
        return dict.fromkeys(ids, 0)
    return {id: LEVELS[(place + run) % len(LEVELS)] for place, id in enumerate(ids)}


@contextmanager
def scratch_clone(source: Path) -> Iterator[Path]:
    """A clone of the last commit, to commit changes to."""
    with tempfile.TemporaryDirectory(prefix="svilm-ab-study-") as folder:
        clone = Path(folder) / "clone"
        git(source, "clone", "--quiet", "--shared", str(source), str(clone))
        yield clone


def commit(clone: Path, message: str) -> str:
    """Commit everything in the scratch clone; returns the commit."""
    git(clone, "add", "--all")
    git(clone, *AUTHOR, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(clone, "rev-parse", "HEAD").strip()


def one_run(clone: Path, run: int, kind: str, options: list[str]) -> dict[str, Any]:
    """Compare the base with a head that does more; returns what the study keeps of it."""
    base = git(clone, "rev-parse", "HEAD").strip()
    extra = extra_units(run, kind)
    path = clone / "svilm_fast" / study_suite.EXTRA_FILE
    path.write_text(json.dumps({id: units for id, units in extra.items() if units}))
    head = commit(clone, f"{kind} {run}")
    git(clone, "reset", "--quiet", "--hard", base)
    out = clone.parent / "result.json"
    out.unlink(missing_ok=True)
    arguments = ["--base", base, "--head", head, "--repository", str(clone)]
    arguments += ["--module", MODULE, "--seed", str(run), "--out", str(out), *options]
    start = time.monotonic()
    command = typer.Typer()
    command.command()(ab)
    code = typer.main.get_command(command)(args=arguments, standalone_mode=False)
    result = json.loads(out.read_text())
    if result["measured"] is None or not result["verdicts"]:
        raise RuntimeError(f"{kind} {run} measured nothing: {'; '.join(result['messages'])}")
    return kept(result, extra) | {
        "base": base,
        "run": run,
        "kind": kind,
        "exit": code,
        "seconds": round(time.monotonic() - start, 1),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def kept(result: dict[str, Any], extra: dict[str, int]) -> dict[str, Any]:
    """The verdicts with what was put in; the samples are left out."""
    environment = result["measured"]["environments"]["base"]
    comparisons = [
        {
            "id": verdict["id"],
            "units": extra[verdict["id"]],
            "word": verdict["word"],
            "outcome": verdict["outcome"],
            "ratio": verdict["ratio"],
            "interval": verdict["interval"],
            "p_slower": verdict["p_slower"],
            "p_slower_holm": verdict["p_slower_holm"],
            "restart_ratios": verdict["restart_ratios"],
        }
        for verdict in result["verdicts"]
    ]
    return {
        "outcome": result["outcome"],
        "comparisons": comparisons,
        "controls": result["controls"],
        "plan": result["request"]["plan"],
        "rule": result["request"]["rule"],
        "cpu": environment["cpu"],
        "cores": environment["cores"],
        "torch": environment["torch"],
        "python": environment["python"],
    }


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 when `report` finds that the figures are not reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["run", "report"])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each run")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "regression-gate.md")
    parser.add_argument("--equal", type=int, default=11, help="runs of equal versions")
    parser.add_argument("--slow", type=int, default=12, help="runs with slowdowns put in")
    parser.add_argument("--until", help="start no run after this time of day, HH:MM")
    parser.add_argument("options", nargs="*", help="after --: options of `svilm bench ab`")
    chosen = parser.parse_args(arguments)
    if chosen.do == "report":
        return 0 if write_report(chosen.out, chosen.page) else 1
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    lines = chosen.out.read_text().splitlines() if chosen.out.is_file() else []
    done = {(one["kind"], one["run"]) for one in map(json.loads, lines)}
    # Kinds take turns, so that a study which is cut short has some of both.
    planned = [
        (kind, run) for run in range(max(chosen.equal, chosen.slow)) for kind in _kinds(chosen, run)
    ]
    with scratch_clone(ROOT) as clone:
        for kind, run in planned:
            if (kind, run) in done:
                continue
            if chosen.until and time.strftime("%H:%M") >= chosen.until:
                print(f"stopped at {chosen.until}; the same command continues", flush=True)
                break
            record = one_run(clone, run, kind, chosen.options)
            with chosen.out.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
            print(f"{kind} {run}: {record['outcome']} in {record['seconds']} s", flush=True)
    return 0


def _kinds(chosen: argparse.Namespace, run: int) -> list[str]:
    return [kind for kind in ("equal", "slow") if run < getattr(chosen, kind)]


if __name__ == "__main__":
    sys.exit(main())
