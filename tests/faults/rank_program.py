"""One rank of a run in which something is made to fail; started by the launcher as a module.

The environment says what: SVILM_FAULTS is a list of faults in JSON, SVILM_FAULT_FOLDER a folder of
this start, where the rank leaves its process id, the ids of its samples by step, and the digest of
the parameters that it began with.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from svilm_fast.train import pretrain
from svilm_fast.train.checkpoint import store as checkpoint
from svilm_fast.train.run import loop
from tests.faults.state import digest
from tests.train.ranks import fault_program

TRAIN = ("nan_loss", "nan_gradient", "skip_agreement")


def record(rank: int, folder: Path) -> None:
    """Write down the samples of every step and the parameters before the first."""
    run, train_on = loop.Loop.run, loop.Loop._train_on
    ids = (folder / f"ids_{rank}.jsonl").open("a")

    def recorded_run(self: loop.Loop) -> Any:
        if self.engine.zero_stage < 3:
            named = {name: p.detach() for name, p in self.engine.model.named_parameters()}
            (folder / f"parameters_{rank}").write_text(digest(named))
        return run(self)

    def recorded_train_on(self: loop.Loop, batch: Any) -> Any:
        print(json.dumps({"step": self.step + 1, "ids": list(batch.ids)}), file=ids, flush=True)
        return train_on(self, batch)

    loop.Loop.run, loop.Loop._train_on = recorded_run, recorded_train_on


def slow_down(seconds: float) -> None:
    """Let every step of this rank take `seconds` longer before its first collective."""
    train_on = loop.Loop._train_on

    def slow_train_on(self: loop.Loop, batch: Any) -> Any:
        time.sleep(seconds)
        return train_on(self, batch)

    loop.Loop._train_on = slow_train_on


def fill(folder: Path, left: int) -> None:
    """Fill the file system of `folder` but for about `left` bytes."""
    with (folder / "ballast").open("ab") as ballast:
        while (free := shutil.disk_usage(folder).free - left) > 0:
            try:
                ballast.write(bytes(min(free, 1 << 20)))
                ballast.flush()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return


def fill_during_save(step: int, left: int, ballast: Path) -> None:
    """Fill the disk between the question whether there is room and the save of `step`."""
    check_space = checkpoint.check_space

    def passed_then_filled(folder: Path, needed: int, what: str) -> None:
        check_space(folder, needed, what)
        if what.endswith(f" {step}"):
            fill(ballast, left)

    checkpoint.check_space = passed_then_filled


def imitate_full_disk(step: int) -> None:
    """Where no file system can be mounted: the write of the random state fails at `step`."""
    save, save_random_state = checkpoint._save, checkpoint.save_random_state

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_or_fail(engine: Any, folder: Path, state: Any, *rest: Any) -> Any:
        checkpoint.save_random_state = full if state.step == step else save_random_state
        return save(engine, folder, state, *rest)

    checkpoint._save = save_or_fail


def inject(fault: dict[str, Any], rank: int, folder: Path) -> None:
    """Prepare this rank for a fault."""
    kind, mine = fault["kind"], fault.get("rank") == rank
    if kind in TRAIN:
        if fault.get("value") == "inf":
            fault_program.poison = lambda values: values * float("inf")
        fault_program.inject(fault, rank, folder)
    elif kind == "slow":
        if mine:
            slow_down(fault["seconds"])
    elif kind == "fill":
        if rank == 0:
            fill_during_save(fault["step"], fault["left"], Path(fault["folder"]))
    elif kind == "imitated_full":
        if mine:
            imitate_full_disk(fault["step"])
    else:
        raise ValueError(f"no fault is called {kind!r}")


def main(arguments: Sequence[str]) -> int:
    """Inject the faults of the environment and train; returns the exit code."""
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR2, file=sys.__stderr__)  # where does it hang?
    folder, rank = Path(os.environ["SVILM_FAULT_FOLDER"]), int(os.environ["RANK"])
    faults = json.loads(os.environ.get("SVILM_FAULTS", "[]"))
    record(rank, folder)
    fault_program.watch_parameters(rank, folder)
    for fault in faults:
        inject(fault, rank, folder)
    written = folder / f".pid_{rank}"
    written.write_text(str(os.getpid()))
    written.replace(folder / f"pid_{rank}")
    return pretrain.main(arguments)


if __name__ == "__main__":
    pretrain.leave(main(sys.argv[1:]))
