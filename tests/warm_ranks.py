"""Forks ranks from a process that has imported torch, DeepSpeed and the package.

A new interpreter costs every rank seconds of imports. `run_on_ranks` starts this program once for
each rank number and process of the tests. Ranks therefore differ in their hash seed, as separate
interpreters do: a fork cannot change the seed that it inherits. A line of stdin describes a rank, a
line of stdout is its exit code. For its program a fork looks like a new interpreter: the arguments,
the folder of the program in front of `sys.path`, the environment, and the exit handlers.
"""

from __future__ import annotations

import gc
import json
import os
import random
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.02


def load() -> None:
    """Import what the programs of ranks import; on a bare GPU machine some of it is missing."""
    import torch

    torch.set_num_threads(1)
    try:
        from svilm_fast.train.environment import import_deepspeed
        from svilm_fast.train.run import session  # noqa: F401

        import_deepspeed("cpu")
        import torch._dynamo  # the first optimizer that is made would import it
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("svilm_fast"):
            raise
    # Frozen objects are not traversed by the collector of a fork, so their pages stay shared.
    gc.collect()
    gc.freeze()


def start(arguments: list[str], environment: dict[str, str], output: str) -> int:
    """Fork a rank; returns its process id in this process and 0 in the rank."""
    pid = os.fork()
    if pid == 0:
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for stream, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(stream, target)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = arguments
        random.seed()  # a new interpreter has a random state of its own
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(int.from_bytes(os.urandom(4), "little"))
        sys.path.insert(0, str(Path(arguments[0]).parent))
    return pid


def exit_code(pid: int, seconds: float) -> int | None:
    """The exit code of a rank; None if it had to be killed after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main() -> None:
    sys.path.pop(0)  # the folder of this file
    load()
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        rank: dict[str, Any] = json.loads(line)
        pid = start(rank["arguments"], rank["environment"], rank["output"])
        if pid == 0:
            # An exception here ends the fork as it would end an interpreter.
            runpy.run_path(rank["arguments"][0], run_name="__main__")
            return
        print(json.dumps(exit_code(pid, rank["timeout"])), file=replies, flush=True)


if __name__ == "__main__":
    main()
