"""`deepspeed` that passes signals on to its ranks and waits for their checkpoint.

The launcher ends at once on a SIGTERM that it alone receives and leaves its ranks behind. For one
node, and for one of several with --no_ssh.
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
    """Return the processes of the ranks: `deepspeed` starts one that starts them."""
    try:
        return [
            rank for starter in psutil.Process(runner).children() for rank in starter.children()
        ]
    except psutil.NoSuchProcess:
        return []


def quiet(given: Sequence[str]) -> list[str]:
    """Return the option that keeps the launcher's console to errors, unless a level was given.

    The options of the launcher stand before `--module` and the program.
    """
    until = given.index("--module") if "--module" in given else len(given)
    asked = [text.split("=")[0] for text in given[:until]]
    return [] if {"-q", "--quiet", "--log_level"} & set(asked) else ["--quiet"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the arguments of `deepspeed`; returns the exit code of the first rank that ended."""
    given = list(arguments) if arguments is not None else sys.argv[1:]
    # In a session of its own, so that a terminal's Ctrl-C reaches the ranks through here alone.
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
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, pass_on)
    return exit_code_of(runner.wait())


if __name__ == "__main__":
    sys.exit(main())
