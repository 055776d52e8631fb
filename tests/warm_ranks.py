"""Forks ranks from a process that has imported torch, DeepSpeed and the package.

A new interpreter would need seconds of imports for every rank. `run_on_ranks` starts this program
once in each test process. A line of stdin describes a group of ranks, a line of stdout has their
exit codes. A fork runs its program as a new interpreter would: with its arguments, the program's
folder first in `sys.path`, its environment, and all exit handlers at the end.
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
    """Import what the programs of ranks import; a bare GPU machine lacks some of it."""
    import torch

    torch.set_num_threads(1)
    try:
        from svilm_fast.train.environment import import_deepspeed
        from svilm_fast.train.run import session  # noqa: F401

        import_deepspeed("cpu")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("svilm_fast"):
            raise
    # The garbage collector of a fork skips what is loaded, so its pages need not be copied.
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
        random.seed()  # a separate group, as a new process would have
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(int.from_bytes(os.urandom(4), "little"))
        sys.path.insert(0, str(Path(arguments[0]).parent))
    return pid


def await_all(pids: list[int], seconds: float) -> list[int | None]:
    """The exit codes of all ranks; None for a rank that was killed after `seconds`."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(pids) and time.monotonic() < deadline:
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    for pid in pids:
        if pid not in codes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            codes[pid] = None
    return [codes[pid] for pid in pids]


def main() -> None:
    sys.path.pop(0)  # the folder of this file
    load()
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        group: dict[str, Any] = json.loads(line)
        pids = []
        for environment, output in zip(group["environments"], group["outputs"], strict=True):
            pids.append(start(group["arguments"], environment, output))
            if pids[-1] == 0:
                # An exception here ends the fork as it would end an interpreter.
                runpy.run_path(group["arguments"][0], run_name="__main__")
                return
        print(json.dumps(await_all(pids, group["timeout"])), file=replies, flush=True)


if __name__ == "__main__":
    main()
