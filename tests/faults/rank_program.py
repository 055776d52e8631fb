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
from svilm_fast.train.engine.engine import Engine
from svilm_fast.train.run.hooks import Hook, installed
from tests.faults.state import digest
from tests.train.ranks.fault_program import Fault, ParameterWatch

TRAIN = ("nan_loss", "nan_gradient", "skip_agreement")


class Recorder(Hook):
    """Records the samples of every step and the parameters before the first."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.parameters = folder / f"parameters_{rank}"
        self.ids = (folder / f"ids_{rank}.jsonl").open("a")

    def before_run(self, engine: Engine) -> None:
        if engine.zero_stage < 3:
            named = {name: p.detach() for name, p in engine.model.named_parameters()}
            self.parameters.write_text(digest(named))

    def before_step(self, step: int, batch: Any) -> None:
        print(json.dumps({"step": step, "ids": list(batch.ids)}), file=self.ids, flush=True)


class SlowModel(Hook):
    """Makes the model wait before every forward, which comes before the first collective."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before_run(self, engine: Engine) -> None:
        engine.model.register_forward_pre_hook(lambda module, inputs: time.sleep(self.seconds))


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


class FullDisk(Hook):
    """Fills the disk after the check for free space and before the save of one step."""

    def __init__(self, fault: dict[str, Any]) -> None:
        self.fault = fault

    def before_save(self, step: int, folder: Path) -> None:
        if step == self.fault["step"]:
            fill(Path(self.fault["folder"]), self.fault["left"])


class ImitatedFullDisk(Hook):
    """Where no file system can be mounted: a write in the save of one step fails."""

    def __init__(self, step: int) -> None:
        self.step = step

    def during_save(self, step: int, folder: Path) -> None:
        if step == self.step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hook_for(fault: dict[str, Any], rank: int, folder: Path) -> Hook | None:
    """Return the hook that injects a fault on this rank; None where it is another rank's."""
    kind, mine = fault["kind"], fault.get("rank") == rank
    if kind in TRAIN:
        return Fault(fault, rank, folder)
    if kind == "slow":
        return SlowModel(fault["seconds"]) if mine else None
    if kind == "fill":
        return FullDisk(fault) if rank == 0 else None
    if kind == "imitated_full":
        return ImitatedFullDisk(fault["step"]) if mine else None
    raise ValueError(f"no fault is called {kind!r}")


def main(arguments: Sequence[str]) -> int:
    """Inject the faults of the environment and train; returns the exit code."""
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR2, file=sys.__stderr__)  # where does it hang?
    folder, rank = Path(os.environ["SVILM_FAULT_FOLDER"]), int(os.environ["RANK"])
    faults = json.loads(os.environ.get("SVILM_FAULTS", "[]"))
    injected = [hook for fault in faults if (hook := hook_for(fault, rank, folder)) is not None]
    written = folder / f".pid_{rank}"
    written.write_text(str(os.getpid()))
    written.replace(folder / f"pid_{rank}")
    with installed(Recorder(rank, folder), ParameterWatch(rank, folder), *injected):
        return pretrain.main(arguments)


if __name__ == "__main__":
    pretrain.leave(main(sys.argv[1:]))
