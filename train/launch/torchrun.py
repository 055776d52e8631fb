"""`torchrun` that exits with the code of its ranks, for schedulers.

torchrun itself exits with 1 after every failure. Here 143 means that a checkpoint was saved on
SIGTERM, 2 that the input is wrong and 4 that a rank was lost.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from svilm_fast.core.terminal import print
from svilm_fast.train.ranks.signals import HANDLED

SIGNAL_EXIT = 128


def exit_code_of(code: int) -> int:
    """Return a child's exit code, negative after a signal, as a shell reports it."""
    return SIGNAL_EXIT - code if code < 0 else code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with torchrun's arguments; returns the exit code of the first rank that failed."""
    chosen = parse_args(arguments)
    if hasattr(chosen, "signals_to_handle"):  # missing in older versions of torch
        wanted = [*chosen.signals_to_handle.split(","), signal.SIGUSR1.name]
        # Under nohup SIGHUP stays ignored.
        ignored = {n.name for n in HANDLED if signal.getsignal(n) == signal.SIG_IGN}
        chosen.signals_to_handle = ",".join(
            name for name in dict.fromkeys(wanted) if name not in ignored
        )
    try:
        run(chosen)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = exit_code_of(failure.exitcode)
        print(f"rank {rank} was the first to end, with exit code {code}", file=sys.stderr)
        return code
    except SignalException as error:
        # torchrun has forwarded the signal and waited for its ranks.
        return SIGNAL_EXIT + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
