"""Run the jobs of a table in processes, several at a time, and keep what they measured."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from svilm_fast.core.checkout import package_commit
from svilm_fast.core.errors import UserError
from svilm_fast.core.records import read_records
from svilm_fast.train.campaigns.jobs import TableJob
from svilm_fast.train.campaigns.store import ResultStore
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.environment import environment_without_launcher
from svilm_fast.train.folder.lock import in_use
from svilm_fast.train.run_app import one_line

POLL_SECONDS = 0.2
LATE_LOSS = "loss_last_tenth"  # metric: mean loss over the last tenth of the steps
# Metrics: duration of the steps, without evaluations; on a CPU also their processor time.
TRAINING_SECONDS = "training_seconds"
PROCESSOR_SECONDS = "training_processor_seconds"
DIED_WITH_PARENT = signal.SIGTERM
_PR_SET_PDEATHSIG = 1
# Exit codes of a run that saved its state because a signal asked it to stop.
STOPPED = {128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}


@dataclass(frozen=True)
class JobFailure:
    """A job whose command failed, or whose result cannot be collected, with its log."""

    job: TableJob
    reason: str
    log: Path

    def __str__(self) -> str:
        return f"{self.job.label}: {self.reason}, see {self.log}"


@dataclass(frozen=True)
class _Running:
    """A process, its GPU, and the commit of the code that it started with."""

    process: subprocess.Popen[bytes]
    gpu: str | None
    commit: str | None


def collect(job: TableJob, commit: str | None) -> dict[str, Any]:
    """Return the metrics, steps and environment of a finished training; else its names alone.

    commit: of the code when the job was started.

    Metrics of training are the last logged ones, those of evaluators the last measured ones. The
    numbers of a command's file are its metrics, with the environment and the steps of the training
    before it. `outcomes` has the result of every query where an evaluation wrote it.
    """
    result = {
        "run": job.name,
        "seed": job.seed,
        "identity": job.identity,
        "commit": commit,
    }
    if job.metrics is not None:
        return {**result, **_of_command(job, job.metrics)}
    if not job.trains:
        return result
    files = RunFiles(job.folder)
    metrics, steps = _logged(files)
    environment = json.loads(files.environment.read_bytes())
    found: list[dict[str, Any]] = []
    for path in sorted(files.evaluation.glob(f"*_step_{steps:08d}.json")):
        found += json.loads(path.read_bytes()).get("outcomes", [])
    return {
        **result,
        "steps": steps,
        "metrics": metrics,
        "outcomes": found,
        "environment": environment,
    }


def _logged(files: RunFiles) -> tuple[dict[str, float], int]:
    """Return the last value of every metric, what is summed over steps, and the number of steps."""
    metrics: dict[str, float] = {}
    losses: list[tuple[int, int, float | None]] = []  # first step, last step, mean loss
    steps, seconds = 0, 0.0
    worked: float | None = 0.0
    records, _ = read_records(files.metrics.read_bytes())
    for _, record in records:
        last, steps = steps, record.pop("step")
        if "seconds_per_step" in record:
            seconds += record["seconds_per_step"] * (steps - last)
            own = record.get("processor_seconds_per_step")
            # One part without the figure, of a GPU or of earlier code, leaves the sum unknown.
            worked = None if own is None or worked is None else worked + own * (steps - last)
        if "loss" in record:
            losses.append((last, steps, record["loss"]))
        metrics |= record
    metrics[TRAINING_SECONDS] = seconds
    if worked:
        metrics[PROCESSOR_SECONDS] = worked
    late = [(end - begin, loss) for begin, end, loss in losses if end > 0.9 * steps]
    finite = [(count, loss) for count, loss in late if loss is not None]  # null: not finite
    if late and len(finite) == len(late):
        metrics[LATE_LOSS] = sum(n * loss for n, loss in finite) / sum(n for n, _ in finite)
    return metrics, steps


def _of_command(job: TableJob, path: Path) -> dict[str, Any]:
    trained = [RunFiles(link.folder) for link in job.chain() if link.trains]
    environment = json.loads(trained[-1].environment.read_bytes()) if trained else {}
    try:
        written = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{job.label}: its metrics cannot be read from {path}: {error}") from error
    numbers = {
        name: float(value)
        for name, value in written.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        "steps": _logged(trained[-1])[1] if trained else 0,
        "metrics": numbers,
        "outcomes": written.get("outcomes", []),
        "environment": environment,
    }


def run_jobs(
    jobs: Sequence[TableJob],
    store: ResultStore,
    parallel: int,
    gpus: Sequence[str] = (),
    done: Callable[[TableJob], None] = lambda job: None,
) -> list[JobFailure]:
    """Run what the store needs of the jobs, each after the one before it; returns the failures.

    parallel: processes at a time. gpus: one of them for each process; empty: no choice is made.
    done: called for each job that has a result. A job whose predecessor failed is not started.
    SIGINT and SIGTERM stop the runs, which save their state; then KeyboardInterrupt is raised.
    """
    unique = list(dict.fromkeys(jobs))
    needed = store.needed(unique)
    waiting = [job for job in unique if job in needed]
    running: dict[TableJob, _Running] = {}
    free = list(gpus)
    failures: list[JobFailure] = []
    kept: set[TableJob] = set()

    def finish(job: TableJob) -> None:
        store.share(job)
        kept.add(job)
        done(job)

    for job in unique:
        if job not in needed:
            finish(job)
    with _stopping(running) as stopped:
        while waiting or running:
            for job in list(running):
                started = running[job]
                code = started.process.poll()
                if code is None:
                    continue
                del running[job]
                if started.gpu is not None:
                    free.append(started.gpu)
                log = _log_path(store.out, job)
                if code == 0:
                    try:
                        store.write(job, collect(job, started.commit))
                    except (UserError, OSError, ValueError, LookupError, TypeError) as error:
                        failures.append(JobFailure(job, f"no result: {one_line(error)}", log))
                        continue
                    finish(job)
                elif not stopped:
                    failures.append(JobFailure(job, f"exit code {code}", log))
            if stopped:
                if running:
                    time.sleep(POLL_SECONDS)
                    continue
                raise KeyboardInterrupt
            for job in list(waiting):
                if job.before is not None and _failed(job.before, failures):
                    waiting.remove(job)
                elif in_use(job.folder):
                    continue  # a run of a campaign that was killed is still saving its state
                elif len(running) < parallel and (job.before is None or job.before in kept):
                    still = store.needed(waiting)
                    waiting.remove(job)
                    if job not in still:  # another campaign has shared its result
                        finish(job)
                        continue
                    gpu = free.pop() if gpus else None
                    running[job] = _start(job, store.out, gpu)
            if running or waiting:
                time.sleep(POLL_SECONDS)
    return failures


def _failed(job: TableJob, failures: Sequence[JobFailure]) -> bool:
    """Whether a job, or one before it, is among the failures."""
    link: TableJob | None = job
    while link is not None:
        if any(failure.job == link for failure in failures):
            return True
        link = link.before
    return False


def _log_path(out: Path, job: TableJob) -> Path:
    return out / "logs" / f"{job.folder.name}.log"


def _start(job: TableJob, out: Path, gpu: str | None) -> _Running:
    log = _log_path(out, job)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = environment_without_launcher()
    environment.setdefault("OMP_NUM_THREADS", "1")
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    commit = package_commit()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "svilm_fast.cli", *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=_end_with_parent,
        )
    return _Running(process, gpu, commit)


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM to this child when the campaign dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, DIED_WITH_PARENT)


@contextlib.contextmanager
def _stopping(
    running: dict[TableJob, _Running],
) -> Iterator[list]:
    """On SIGINT or SIGTERM, ask the runs to stop and fill the yielded list."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        for each in running.values():
            each.process.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for each in running.values():
            each.process.terminate()
        for number, handler in before.items():
            signal.signal(number, handler)
