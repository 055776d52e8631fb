"""Parallel processes with captured output and a hard time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class Done:
    """The result of a process: its exit status, None if it was killed at the limit."""

    name: str
    code: int | None
    seconds: float
    text: str


def run_side_by_side(commands: Mapping[str, Sequence[str]], limit_s: float) -> list[Done]:
    """Start all commands, wait for them, and kill those that take longer than `limit_s`.

    Each process leads its own group, so its children end with it.
    """
    begin = time.monotonic()
    done: dict[str, Done] = {}
    running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
    with ExitStack() as stack:
        stack.callback(_end_all, running)
        for name, command in commands.items():
            output = stack.enter_context(tempfile.TemporaryFile())
            running[name] = start(command, output), output
        while running:
            late = time.monotonic() - begin > limit_s
            for name, (process, log) in list(running.items()):
                code = process.poll()
                if code is None and not late:
                    continue
                end(process)
                log.seek(0)
                text = log.read().decode(errors="replace")
                done[name] = Done(name, code, time.monotonic() - begin, text)
                del running[name]
            time.sleep(0.05)
    return [done[name] for name in commands]


def _end_all(running: Mapping[str, tuple[subprocess.Popen[bytes], IO[bytes]]]) -> None:
    for process, _ in running.values():
        end(process)


def start(command: Sequence[str], output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Start a command as the leader of its own process group."""
    return subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and the rest of its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
