"""Where units of off-line work run: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Generator, Sequence
from enum import StrEnum
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from svilm_fast.core.machine import usable_cores
from svilm_fast.core.messages import single_line
from svilm_fast.data.main_module import main_module_hidden
from svilm_fast.data.offline.manifest import FinishedUnit
from svilm_fast.data.offline.outputs import OfflineError

# How often Ray starts a unit again whose node was lost.
_RETRIES = 5


_worker_number = 0


class OfflineEngine(StrEnum):
    LOCAL = "local"
    RAY = "ray"


class Job(Protocol):
    """A unit of work; picklable."""

    @property
    def name(self) -> str: ...

    def __call__(self) -> FinishedUnit: ...


def local_workers(units: int, workers: int | None) -> int:
    """Processes of the local engine (default: one per core, and no more than there are units)."""
    return max(1, min(units, workers or usable_cores()))


def worker_number() -> int:
    """The number of this process among the workers of the local engine, from 0.

    It is 0 outside a worker, and on Ray, which shows each task its own GPUs alone.
    """
    return _worker_number


def run_jobs(
    jobs: Sequence[Job], engine: OfflineEngine, workers: int | None, cpus: int, gpu: bool = False
) -> Generator[FinishedUnit, None, None]:
    """Run every job; yield results as they come. After a failure no new job starts."""
    if engine is OfflineEngine.RAY:
        return _on_ray(jobs, workers, cpus, gpu)
    count = local_workers(len(jobs), workers)
    return _in_processes(jobs, count) if count > 1 else (job() for job in jobs)


def _in_processes(jobs: Sequence[Job], count: int) -> Generator[FinishedUnit, None, None]:
    waiting = iter(jobs)
    idle = []
    busy: dict[Any, tuple[_Process, Job]] = {}
    failure: Exception | None = None
    with contextlib.ExitStack() as stack:
        with main_module_hidden():
            for number in range(count):
                idle.append(process := _Process(number))
                stack.callback(process.kill)
        while True:
            while idle and failure is None and (job := next(waiting, None)) is not None:
                process = idle.pop()
                busy[process.connection] = process, job
                # A worker that has died already is noticed below.
                with contextlib.suppress(BrokenPipeError):
                    process.connection.send(job)
            if not busy:
                break
            for connection in wait(list(busy)):
                process, job = busy.pop(connection)
                try:
                    result = process.connection.recv()
                except (EOFError, ConnectionResetError):
                    result = OfflineError(process.death_at(job.name))
                else:
                    idle.append(process)
                if isinstance(result, FinishedUnit):
                    yield result
                else:
                    failure = failure or result
    if failure is not None:
        raise failure


class _Process:
    """A worker. It ends with this process, however that ends."""

    def __init__(self, number: int) -> None:
        # forkserver: the caller may hold threads, which a plain fork would not survive.
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, number))
        self.process.start()
        theirs.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def death_at(self, name: str) -> str:
        self.process.join()
        return (
            f"the process that worked on {name} died (exit code {self.process.exitcode}; -9 is "
            "often a lack of memory): start again with the same arguments to continue, perhaps "
            "with fewer --workers"
        )


def _serve(connection: Connection, number: int) -> None:
    global _worker_number
    _worker_number = number
    parent = multiprocessing.parent_process()
    assert parent is not None
    # The parent alone reacts to an interrupt, and it may be killed while a unit is at work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sentinel = parent.sentinel
    threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        result = _attempt(job)
        try:
            connection.send(result)
        except (AttributeError, TypeError) as error:  # it holds something that cannot be sent
            connection.send(_in_words(job, result if isinstance(result, Exception) else error))


def _on_ray(
    jobs: Sequence[Job], workers: int | None, cpus: int, gpu: bool
) -> Generator[FinishedUnit, None, None]:
    try:
        import ray
    except ImportError:
        raise OfflineError(
            "--engine ray needs Ray on every node: pip install 'svilm-fast[ray]'"
        ) from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)  # the cluster of RAY_ADDRESS, or one on this machine
    try:
        yield from _ray_tasks(ray, jobs, workers, cpus, gpu)
    finally:
        if started:
            ray.shutdown()


def _ray_tasks(
    ray: Any, jobs: Sequence[Job], workers: int | None, cpus: int, gpu: bool
) -> Generator[FinishedUnit, None, None]:
    # Without this, Ray hides all GPUs from a task.
    gpus = int(gpu and ray.cluster_resources().get("GPU", 0) >= 1)
    task = ray.remote(max_retries=_RETRIES, num_cpus=cpus, num_gpus=gpus)(_attempt)
    waiting = iter(jobs)
    busy: dict[Any, str] = {}
    failure: Exception | None = None
    while True:
        # Twice as many as fit, so that no core waits for this process.
        most = workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)) // cpus)
        while len(busy) < most and failure is None and (job := next(waiting, None)) is not None:
            busy[task.remote(job)] = job.name
        if not busy:
            break
        (ready, *_), _ = ray.wait(list(busy), num_returns=1)
        name = busy.pop(ready)
        try:
            result = ray.get(ready)
        except ray.exceptions.RayError as error:
            result = OfflineError(f"Ray gave up on {name}: {type(error).__name__}: {error}")
        if isinstance(result, FinishedUnit):
            yield result
        else:
            failure = failure or result
    if failure is not None:
        raise failure


def _attempt(job: Job) -> FinishedUnit | Exception:
    """The result of a job, or its error in a form that can be sent to another process."""
    try:
        return job()
    except Exception as error:
        text = traceback.format_exc()
        try:
            sent = copy.copy(error)  # made of its arguments, as another process would
        except Exception:  # whatever the error's own class does
            sent = _in_words(job, error)
        sent.add_note(text)
        return sent


def _in_words(job: Job, error: Exception) -> OfflineError:
    return OfflineError(f"{job.name}: {type(error).__name__}: {single_line(error)}")
