"""Set-up before any test module is imported (Triton interprets kernels without a GPU); fixtures."""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import bars

# Triton reads this when a kernel is decorated, so it must be set before the first import of triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Tests run in parallel and on small tensors, so more threads would only wait for each other. The
# variable is for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# A shell starts background processes with SIGINT ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# `nohup` does the same with SIGHUP. A handler that does nothing keeps the tests alive and is not
# inherited by the programs that they start.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

# The output of torch.compile and of launchers is removed with the tests. A process that finds the
# variable set is a child of the tests.
if "SVILM_TESTS_SCRATCH" not in os.environ:
    scratch = tempfile.mkdtemp(prefix="svilm-tests-")
    os.environ["SVILM_TESTS_SCRATCH"] = os.environ["TMPDIR"] = scratch
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(scratch) / "inductor"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)


bars.install()

# Programs that tests start on ranks import the tests' shared modules.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in (paths := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, *paths]))
AT_START = dict(os.environ)  # before any test has changed them


@pytest.fixture(scope="session")
def read_records() -> Callable[[Path], list[dict[str, Any]]]:
    """The records of a run's metrics.jsonl."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def ranks() -> Iterator[Any]:
    """One process group of one rank for all tests that train in this process.

    It exists until the last of them ends, because DeepSpeed keeps the first group that it sees.
    """
    from svilm_fast.train.config.schema import DistributedConfig
    from svilm_fast.train.ranks.process_group import leave_ranks, start_ranks

    yield start_ranks(DistributedConfig(device="cpu"))
    leave_ranks()


@pytest.fixture(scope="session")
def warm_ranks() -> Iterator[Callable[..., list[int | None]]]:
    """`warm_ranks(arguments, environments, outputs, timeout)`: exit codes of forked ranks.

    Rank r is a fork of process r, which all tests share (`warm_ranks.py`). Each process has its own
    hash seed, as separate interpreters have. None is a rank that was killed at its timeout.
    """
    processes: list[subprocess.Popen] = []

    def run(
        arguments: list[str], environments: list[dict], outputs: list[Path], timeout: float
    ) -> list[int | None]:
        while len(processes) < len(environments):
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("warm_ranks.py"))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=AT_START | {"PYTHONHASHSEED": "random"},
                    start_new_session=True,
                )
            )
        used = processes[: len(environments)]
        for process, environment, output in zip(used, environments, outputs, strict=True):
            rank = {"arguments": arguments, "environment": environment, "output": str(output)}
            process.stdin.write(json.dumps(rank | {"timeout": timeout}) + "\n")
            process.stdin.flush()
        try:
            return [json.loads(process.stdout.readline()) for process in used]
        except BaseException:
            # A test that ran out of time must not leave its answers to the next one.
            for process in used:
                os.killpg(process.pid, signal.SIGKILL)
                processes.remove(process)
            raise

    yield run
    for process in processes:
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="session")
def run_on_ranks(warm_ranks, tmp_path_factory) -> Callable[..., list[str]]:
    """`run_on_ranks(world_size, program, *words, timeout=280, **variables)`: their outputs.

    Every rank runs the program with `words` as arguments, the variables that a launcher sets, and
    `variables`; it must end with 0 within `timeout` seconds. Ranks with extra variables, ranks
    that run `-c`, and ranks that may use a GPU are new interpreters; the others are forks.
    """
    # Not imported above: tests of kernels are collected even if requirements are missing.
    from svilm_fast.train.environment import environment_without_launcher, free_port

    def run(
        world_size: int, *arguments: object, timeout: float = 280, **variables: str
    ) -> list[str]:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared = environment_without_launcher() | place | {"WORLD_SIZE": str(world_size)}
        environments = [
            shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | variables
            for rank in range(world_size)
        ]
        words = list(map(str, arguments))
        if not variables and words[0] != "-c" and not torch.cuda.is_available():
            folder = tmp_path_factory.mktemp("outputs")
            files = [folder / str(rank) for rank in range(world_size)]
            codes = warm_ranks(words, environments, files, timeout)
            outputs = [file.read_text() for file in files]
        else:
            codes, outputs = _run_cold(words, environments, timeout)
        assert codes == [0] * world_size, "\n".join(outputs)
        return outputs

    return run


def _run_cold(
    arguments: list[str], environments: list[dict[str, str]], timeout: float
) -> tuple[list[int], list[str]]:
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in environments
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


@pytest.fixture(scope="session")
def capture() -> Callable[..., tuple[Any, Any, torch.cuda.CUDAGraph]]:
    """`capture(run)`: the result of `run()`, what its CUDA graph writes, and the graph."""

    def captured(run: Callable[[], Any]) -> tuple[Any, Any, torch.cuda.CUDAGraph]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                returned = run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            written = run()
        return returned, written, graph

    return captured
