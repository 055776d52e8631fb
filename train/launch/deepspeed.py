"""`deepspeed` that forwards signals to its ranks and waits for their checkpoint.

DeepSpeed's launcher ends at once on a SIGTERM that only it receives, and leaves its ranks running.
This wrapper works for one node, and for each of several with --no_ssh.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

import psutil

from svilm_fast.train.launch.torchrun import exit_code_of
from svilm_fast.train.ranks.signals import HANDLED


def ranks_of(runner: int) -> list[psutil.Process]:
    """Return the processes of the ranks, which are grandchildren of the launcher."""
    try:
        return [
            rank for starter in psutil.Process(runner).children() for rank in starter.children()
        ]
    except psutil.NoSuchProcess:
        return []


def quiet(given: Sequence[str]) -> list[str]:
    """Return the option that limits the launcher's log to errors, unless a level was given.

    The launcher's options come before `--module` and the program.
    """
    until = given.index("--module") if "--module" in given else len(given)
    asked = [text.split("=")[0] for text in given[:until]]
    return [] if {"-q", "--quiet", "--log_level"} & set(asked) else ["--quiet"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the arguments of `deepspeed`; returns the exit code of the rank that ended first."""
    given = list(arguments) if arguments is not None else sys.argv[1:]
    # In a new session, so that Ctrl-C reaches the ranks only through this process.
    runner = subprocess.Popen(
        [sys.executable, "-m", "deepspeed.launcher.runner", *quiet(given), *given],
        start_new_session=True,
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        ranks = ranks_of(runner.pid)
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(number)
        if not ranks:
            runner.send_signal(number)

    for number in HANDLED:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, pass_on)
    return exit_code_of(runner.wait())


if __name__ == "__main__":
    sys.exit(main())
