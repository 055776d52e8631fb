"""`python -m tests.fuzz`: the full form, in batches, with a record from which it resumes.

One process per target runs the batches, so a crash or a hang of native code is a finding and
does not stop the other targets. A batch is a function of its target and number.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import json
import os
import platform
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

# Triton reads this when a kernel is decorated.
os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A target stops after this many findings.
MOST_FINDINGS = 5
# A process stuck in native code is killed after this multiple of an input's time limit.
STUCK = 3


def seed_of(name: str, batch: int) -> int:
    return zlib.crc32(f"{name}/{batch}".encode())


def work(name: str, first: int, inputs: int) -> None:
    """Run batches, starting at number `first`, for `inputs` inputs; print a JSON line for each."""
    import torch

    from .engine import run_batch
    from .targets import TARGETS

    torch.set_num_threads(1)
    target, batch, done, findings = TARGETS[name], first, 0, 0
    limit = STUCK * target.seconds
    while done < inputs and findings < MOST_FINDINGS:
        start = time.monotonic()
        outcome = run_batch(
            target,
            min(target.batch, inputs - done),
            seed_of(name, batch),
            lambda: faulthandler.dump_traceback_later(limit, exit=True),
        )
        faulthandler.cancel_dump_traceback_later()
        done += outcome.inputs
        findings += outcome.finding is not None
        line = {
            "batch": batch,
            "inputs": outcome.inputs,
            "refused": outcome.refused,
            "finding": outcome.finding,
            "seconds": time.monotonic() - start,
        }
        print(json.dumps(line), flush=True)
        batch += 1


def git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()


class Record:
    """The counts of every target so far, in a file that is written atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"format": 1, "commits": [], "targets": {}}
        if path.is_file():
            self.content = json.loads(path.read_text())
        commit = git("rev-parse", "--short=12", "HEAD")
        if git("status", "--porcelain", "--untracked-files=no"):
            commit += " with changes"
        if commit not in self.content["commits"]:
            self.content["commits"].append(commit)
        self.content["python"] = platform.python_version()

    def of(self, name: str) -> dict[str, Any]:
        empty = {"inputs": 0, "refused": 0, "seconds": 0.0, "batches": 0, "findings": []}
        return self.content["targets"].setdefault(name, empty)

    def add(self, name: str, full: int, line: dict[str, Any]) -> None:
        entry = self.of(name)
        entry["full"] = full
        entry["inputs"] += line["inputs"]
        entry["refused"] += line["refused"]
        entry["seconds"] = round(entry["seconds"] + line["seconds"], 1)
        entry["batches"] = line["batch"] + 1
        if line["finding"]:
            entry["findings"].append({"batch": line["batch"], "text": line["finding"]})
        self.content["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(partial, self.path)


def run_target(name: str, record: Record, inputs: int, advance: Any) -> None:
    """Run the missing inputs of one target in a separate process."""
    entry = record.of(name)
    while entry["inputs"] < inputs and len(entry["findings"]) < MOST_FINDINGS:
        missing = inputs - entry["inputs"]
        words = ["--worker", name, "--first", str(entry["batches"]), "--inputs", str(missing)]
        start = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                for text in process.stdout:
                    if text.startswith('{"batch"'):
                        line = json.loads(text)
                        record.add(name, inputs, line)
                        advance(line["inputs"])
                        start = time.monotonic()
                assert process.stderr is not None
                errors = process.stderr.read()
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            reason = f"the process ended with {process.returncode} in this batch\n{errors[-3000:]}"
            line = {"batch": entry["batches"], "inputs": 0, "refused": 0, "finding": reason}
            record.add(name, inputs, line | {"seconds": time.monotonic() - start})


def reproduce(name: str, batch: int) -> int:
    """Run one batch in this process, so that a finding raises with its traceback."""
    from .engine import run_batch
    from .targets import TARGETS

    outcome = run_batch(TARGETS[name], TARGETS[name].batch, seed_of(name, batch))
    if outcome.error is None:
        print(f"batch {batch} of {name}: {outcome.inputs} inputs, no finding")
        return 0
    raise outcome.error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", help="only this target; may be repeated")
    parser.add_argument("--inputs", type=int, help="inputs of each target; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz.json"), help="the record")
    parser.add_argument("--batch", type=int, help="rerun this batch of one --target")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.first, options.inputs)
        return 0

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.table import Table

    from .targets import TARGETS

    names = options.target or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"unknown target {unknown[0]!r}; targets: {', '.join(TARGETS)}")
    if options.batch is not None:
        if len(names) != 1:
            parser.error("--batch needs one --target")
        return reproduce(names[0], options.batch)
    record = Record(options.out)
    goals = {name: options.inputs or TARGETS[name].full for name in names}
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in names:
            done = record.of(name)["inputs"]
            task = progress.add_task(name.ljust(14), total=goals[name], completed=done)
            run_target(name, record, goals[name], lambda n, task=task: progress.advance(task, n))

    table = Table("target", "inputs", "of", "refused", "findings", "seconds")
    for name in names:
        entry = record.of(name)
        shown = (entry["inputs"], goals[name], entry["refused"], len(entry["findings"]))
        table.add_row(name, *map(str, shown), f"{entry['seconds']:.0f}")
    console = Console(width=100)
    console.print(table)
    found = [(name, finding) for name in names for finding in record.of(name)["findings"]]
    for name, finding in found:
        console.print(f"\n{name}, batch {finding['batch']}:", finding["text"], markup=False)
    console.print(f"record: {options.out}", markup=False)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
