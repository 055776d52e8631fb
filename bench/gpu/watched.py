"""Runs the op benchmark in a separate process: a crash or a hang costs only one figure."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.gpu.ops_run import STARTING
from svilm_fast.bench.gpu.parts import end, start

# A benchmark takes seconds; a compiled peer of the largest case perhaps one minute.
SILENCE_S = 100.0
MOST_STARTS = 6
# The time by which the last benchmark may exceed the deadline.
GRACE_S = 15.0
# The time limit of the process that finishes the file; it measures nothing.
FINISH_S = 30.0
PROGRAM = (sys.executable, "-u", "-m", "svilm_fast.bench.gpu.ops_run")
ENDED = {ExitCode.OK, ExitCode.USAGE, ExitCode.INCOMPARABLE, ExitCode.MISSING, ExitCode.FAILED}


def benchmark(
    out: Path,
    deadline_s: float,
    *,
    more: Sequence[str] = (),
    silence_s: float = SILENCE_S,
    grace_s: float = GRACE_S,
    tell: Callable[[str], None] = print,
    program: Sequence[str] = PROGRAM,
) -> int:
    """Run `svilm_fast.bench.gpu.ops_run` into `out`; restart it after a crash or a hang.

    If the process crashes, or prints nothing for `silence_s`, its current benchmark is recorded as
    failed and another process measures the rest. A process that still runs `grace_s` after the
    deadline is killed too, and a last process finishes the file.

    Returns the exit status; `ExitCode.FAILED` if `MOST_STARTS` processes did not finish.
    """
    begin = time.monotonic()
    lost: dict[str, str] = {}
    for _ in range(MOST_STARTS):
        now = time.monotonic()
        left = begin + deadline_s - now
        late = left + grace_s <= 0
        until = now + FINISH_S if late else begin + deadline_s + grace_s
        command = [*program, "--out", str(out), "--deadline", f"{max(left, 0):.0f}"]
        command += ["--announce", *more]
        # A file from before the first benchmark is that of an older run.
        command += ["--resume"] if lost else []
        for id, why in lost.items():
            command += ["--without", id, why]
        process = start(command, subprocess.PIPE)
        code, under_way = _follow(process, silence_s, until, tell)
        if code in ENDED:
            return code
        if late:
            break
        why = "no output, killed" if code is None else f"ended the process ({code})"
        tell(f"! {under_way or 'before any benchmark'}: {why}; restarted")
        if under_way:
            lost[under_way] = why
    return int(ExitCode.FAILED)


def _follow(
    process: subprocess.Popen[bytes], silence_s: float, until: float, tell: Callable[[str], None]
) -> tuple[int | None, str]:
    """Forward its output; returns its exit status (None: killed) and its current benchmark."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    under_way, heard = "", time.monotonic()
    try:
        while (now := time.monotonic()) - heard <= silence_s and now <= until:
            # Polled, because a compiler's worker may hold the pipe open.
            ended = process.poll() is not None
            try:
                text = lines.get(timeout=0.5)
            except queue.Empty:
                if ended:
                    return process.returncode, under_way
                continue
            heard = time.monotonic()
            if text.startswith(STARTING):
                under_way = text.removeprefix(STARTING)
            else:
                tell(text)
        return None, under_way
    finally:
        end(process)


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        lines.put(text.decode(errors="replace").rstrip("\n"))
