"""Forks the ranks of a run, injects one fault, and tells how each rank ended.

Started once by the tests; torch and DeepSpeed are imported before the first fork, so that a case
costs seconds. Every line of stdin describes a case, every line of stdout its ending.
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
from svilm_fast.train.engine.engine import Engine
from svilm_fast.train.environment import free_port, import_deepspeed
from svilm_fast.train.ranks import monitor as watch
from svilm_fast.train.ranks.process_group import Ranks
from svilm_fast.train.run import loop

START_SECONDS = 150.0  # until the fault: other processes share the machine
POLL_SECONDS = 0.02


def parameters_of(engine: Engine) -> list[torch.Tensor]:
    """Copies of what this rank holds of every parameter, also where ZeRO 3 has split it."""
    return [
        getattr(parameter, "ds_tensor", parameter).detach().clone()
        for parameter in engine.model.parameters()
    ]


def poison(values: torch.Tensor) -> torch.Tensor:
    return values * float("nan")


def refuse(*arguments: Any, **named: Any) -> None:
    raise OSError("a firewall")


def half_of(batch: ClipBatch) -> ClipBatch:
    names = [entry.name for entry in dataclasses.fields(batch)]
    return ClipBatch(**{name: getattr(batch, name)[: len(batch) // 2] for name in names})


def inject(fault: dict[str, Any], rank: int, folder: Path) -> None:
    """Let `Loop._train_on` meet the fault at its step."""
    kind, train_on = fault["kind"], loop.Loop._train_on
    mine = rank == fault["rank"]
    if kind == "absent" and mine:
        (folder / "fault").touch()
        os._exit(0)
    if kind == "cut_off" and mine:
        watch.socket.create_connection = refuse

    def faulty_train_on(self: loop.Loop, batch: Any) -> Any:
        if self.step + 1 != fault["step"]:
            return train_on(self, batch)
        (folder / "fault").touch()
        if not mine:
            return train_on(self, batch)
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "leave":
            sys.exit(0)
        elif kind == "vanish":
            os._exit(0)
        elif kind == "hang":
            time.sleep(1000)
        elif kind == "error":
            raise WorkerError("the worker lost its clip")
        elif kind == "half":
            batch = half_of(batch)
        elif kind == "skip_step":
            self.step += 1
            self.engine.ranks.reached(self.step + 1)
        elif kind == "skip_agreement":
            agree_max = Ranks.agree_max
            Ranks.agree_max = lambda self, *values: list(values)
            try:
                return train_on(self, batch)
            finally:
                Ranks.agree_max = agree_max
        elif kind in ("nan_loss", "nan_gradient"):
            layer = next(m for m in self.engine.model.modules() if isinstance(m, nn.Linear))
            handle = (
                layer.register_forward_hook(lambda module, inputs, output: poison(output))
                if kind == "nan_loss"
                else next(layer.parameters()).register_hook(poison)
            )
            try:
                return train_on(self, batch)
            finally:
                handle.remove()
        return train_on(self, batch)

    loop.Loop._train_on = faulty_train_on


def watch_parameters(rank: int, folder: Path) -> None:
    """Write down of every step that was not applied whether it left the parameters as they were."""
    engine_step = Engine.step

    def watched_step(self: Engine, *arguments: Any, **named: Any) -> Any:
        before = parameters_of(self)
        result = engine_step(self, *arguments, **named)
        if not result.applied:
            same = all(map(torch.equal, before, parameters_of(self)))
            finite = all(bool(torch.isfinite(value).all()) for value in before)
            with (folder / f"skipped_{rank}").open("a") as file:
                file.write(f"same={same} finite={finite}\n")
        return result

    Engine.step = watched_step


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
    watch_parameters(rank, folder)
    for fault in case.get("faults", []):
        inject(fault, rank, folder)
    extra = case.get("only_on_rank", {}).get(str(rank), [])
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
