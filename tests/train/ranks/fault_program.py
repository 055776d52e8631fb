"""Forks the ranks of a run, injects one fault, and prints how each rank ended.

Started once by the tests; torch and DeepSpeed are imported before the first fork, so that a case
costs seconds. Every line of stdin describes a case, every line of stdout its result.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.errors import WorkerError
from svilm_fast.train import pretrain
from svilm_fast.train.engine.engine import Engine, StepResult
from svilm_fast.train.environment import free_port, import_deepspeed
from svilm_fast.train.ranks import monitor
from svilm_fast.train.ranks.process_group import Ranks
from svilm_fast.train.run.hooks import Hook, installed

START_SECONDS = 150.0  # until the fault: other processes share the machine
POLL_SECONDS = 0.02


def parameters_of(engine: Engine) -> list[torch.Tensor]:
    """Copies of what this rank holds of every parameter, also where ZeRO 3 has split it."""
    return [
        getattr(parameter, "ds_tensor", parameter).detach().clone()
        for parameter in engine.model.parameters()
    ]


def refuse(*arguments: Any, **named: Any) -> None:
    raise OSError("a firewall")


def halve(batch: ClipBatch) -> None:
    rows = len(batch) // 2
    for entry in dataclasses.fields(batch):
        value = getattr(batch, entry.name)
        setattr(batch, entry.name, None if value is None else value[:rows])


class WithoutAgreement(Ranks):
    """Leaves out the collective of `agree_max`."""

    def agree_max(self, *values: float) -> list[float]:
        return list(values)


class Fault(Hook):
    """A fault of one rank at one step. Every rank creates the file `fault` when the step begins."""

    def __init__(self, fault: dict[str, Any], rank: int, folder: Path) -> None:
        self.kind, self.step = fault["kind"], fault["step"]
        self.poison = float(fault.get("value", "nan"))
        self.mine = rank == fault["rank"]
        self.marker = folder / "fault"

    def before_run(self, engine: Engine) -> None:
        self.engine, self.ranks = engine, engine.ranks

    def before_step(self, step: int, batch: Any) -> None:
        if step != self.step:
            return
        self.marker.touch()
        if self.mine:
            self.act(step, batch)

    def after_step(self, step: int, result: StepResult) -> None:
        if step == self.step and self.mine:
            self.engine.ranks = self.ranks
            if self.kind in ("nan_loss", "nan_gradient"):
                self.handle.remove()

    def act(self, step: int, batch: Any) -> None:
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.kind == "leave":
            sys.exit(0)
        elif self.kind == "vanish":
            os._exit(0)
        elif self.kind == "hang":
            time.sleep(1000)
        elif self.kind == "error":
            raise WorkerError("the worker lost its clip")
        elif self.kind == "half":
            halve(batch)
        elif self.kind == "step_ahead":
            self.ranks.reached(step + 1)
        elif self.kind == "skip_agreement":
            self.engine.ranks = WithoutAgreement(**vars(self.ranks))
        elif self.kind in ("nan_loss", "nan_gradient"):
            layer = next(m for m in self.engine.model.modules() if isinstance(m, nn.Linear))
            self.handle = (
                layer.register_forward_hook(lambda module, inputs, output: output * self.poison)
                if self.kind == "nan_loss"
                else next(layer.parameters()).register_hook(lambda values: values * self.poison)
            )
        else:
            raise ValueError(f"no fault is called {self.kind!r}")


class ParameterWatch(Hook):
    """Records of every step that was not applied whether it left the parameters unchanged."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.record = folder / f"skipped_{rank}"

    def before_run(self, engine: Engine) -> None:
        self.engine = engine

    def before_step(self, step: int, batch: Any) -> None:
        self.before = parameters_of(self.engine)

    def after_step(self, step: int, result: StepResult) -> None:
        if not result.applied:
            same = all(map(torch.equal, self.before, parameters_of(self.engine)))
            finite = all(bool(torch.isfinite(value).all()) for value in self.before)
            with self.record.open("a") as file:
                file.write(f"same={same} finite={finite}\n")


def hooks_for(faults: list[dict[str, Any]], rank: int, folder: Path) -> list[Hook]:
    """Return the hooks that inject the faults; those before the first step act at once."""
    hooks: list[Hook] = [ParameterWatch(rank, folder)]
    for fault in faults:
        mine = rank == fault["rank"]
        if fault["kind"] == "absent":
            if mine:
                (folder / "fault").touch()
                os._exit(0)
        elif fault["kind"] == "cut_off":
            if mine:
                monitor.socket.create_connection = refuse
        else:
            hooks.append(Fault(fault, rank, folder))
    return hooks


def rank_main(case: dict[str, Any], rank: int, port: int) -> None:
    """Run one rank in this (forked) process; never returns."""
    folder = Path(case["folder"])
    output = os.open(folder / f"rank_{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(case["world_size"]),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    extra = case.get("only_on_rank", {}).get(str(rank), [])
    with installed(*hooks_for(case.get("faults", []), rank, folder)):
        pretrain.leave(pretrain.main([*case["arguments"], *extra]))


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Run a case; the ranks have `limit` seconds from the fault (or the start) to end."""
    folder, port = Path(case["folder"]), free_port()
    pids: dict[int, int] = {}
    for rank in range(case["world_size"]):
        pid = os.fork()
        if pid == 0:
            code: Any = 99
            try:
                rank_main(case, rank, port)
            except SystemExit as end:
                code = end.code
            finally:
                os._exit(code)
        pids[rank] = pid
    awaited = set(pids) - set(case.get("not_awaited", []))
    codes: dict[int, int] = {}
    deadline, limited = time.monotonic() + START_SECONDS, False

    def collect() -> None:
        for rank, pid in pids.items():
            if rank not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[rank] = os.waitstatus_to_exitcode(status)

    while not awaited <= set(codes) and time.monotonic() < deadline:
        if not limited and (folder / "fault").exists():
            deadline, limited = time.monotonic() + case["limit"], True
        time.sleep(POLL_SECONDS)
        collect()
    ended_in_time = sorted(codes)
    for rank in set(pids) - set(codes):
        os.kill(pids[rank], signal.SIGCONT)
    deadline = time.monotonic() + 10.0
    while len(codes) < len(pids) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        collect()
    for rank in set(pids) - set(codes):
        os.kill(pids[rank], signal.SIGKILL)
        os.waitpid(pids[rank], 0)
    return {
        "ended_in_time": ended_in_time,
        "codes": [codes.get(rank) for rank in range(case["world_size"])],
        "outputs": [
            (folder / f"rank_{rank}.log").read_text() for rank in range(case["world_size"])
        ],
    }


def main() -> None:
    import_deepspeed("cpu")
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
