"""Runs DeepSpeed's launcher in a process that has imported everything, so that starts are fast.

Every line of stdin describes a run. For each, a fork of this process calls `main` of
`deepspeed.launcher.launch`, the program that `deepspeed` starts on every node. Its ranks are forks
too, instead of new interpreters, so they share one hash seed. Everything else is the launcher's own
code: the variables, the monitoring of the ranks, the end of all when one ends, the exit code.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer that is made would import it

from svilm_fast.train import pretrain  # noqa: F401
from svilm_fast.train.environment import free_port, import_deepspeed
from tests.faults import rank_program


class ForkedRank:
    """The part of subprocess.Popen that the launcher uses, for a fork of this process."""

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        # python -u -m tests.faults.rank_program, then its arguments
        module = command.index("-m") + 1
        if command[module] != rank_program.__name__:
            raise ValueError(f"ranks run {rank_program.__name__}, not {command[module]}")
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code: Any = 99
            try:
                os.environ.clear()
                os.environ.update(env)
                code = rank_program.main(command[module + 1 :])
            except SystemExit as end:
                code = end.code
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code if isinstance(code, int) else 1)

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.returncode = -signal.SIGKILL
                return self.returncode
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class ForkingModule:
    Popen = ForkedRank


def launch(case: dict[str, Any]) -> int:
    """Run the launcher of one run; returns the exit code."""
    from deepspeed.launcher import launch as launcher

    os.setsid()
    output = os.open(case["output"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(case["env"])
    nodes = {"localhost": list(range(case["world_size"]))}
    sys.argv = [
        "launch.py",
        f"--world_info={base64.urlsafe_b64encode(json.dumps(nodes).encode()).decode()}",
        "--node_rank=0",
        "--master_addr=127.0.0.1",
        f"--master_port={free_port()}",
        "--module",
        rank_program.__name__,
        *case["arguments"],
    ]
    vars(launcher)["subprocess"] = ForkingModule
    launcher.main()
    return 0


def main() -> None:
    import_deepspeed("cpu")
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the launchers
    for line in sys.stdin:
        case = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code: Any = 99
            try:
                code = launch(case)
            except SystemExit as end:
                code = end.code
            finally:
                written = Path(case["code"]).with_suffix(".tmp")
                written.write_text(str(code))
                written.replace(case["code"])
                os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
