"""Starts the ranks of a measurement on this machine and collects what they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from svilm_fast.bench.environment import ROOT
from svilm_fast.core.messages import single_line
from svilm_fast.train.environment import free_port

LOG_TAIL = 600


class RanksFailedError(RuntimeError):
    """A rank of a measurement ended with an error."""


def run_ranks(module: str, world_size: int, *arguments: str, timeout_s: float = 600.0) -> list[Any]:
    """Run `python -m module FOLDER *arguments` as `world_size` ranks of one thread each.

    Every rank writes `<rank>.json` into FOLDER; returns their contents in the order of the ranks.
    Raises RanksFailedError with the end of the output of the first rank that failed.
    """
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = []
        for rank in range(world_size):
            with (folder / f"{rank}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, str(folder), *arguments],
                        cwd=ROOT,
                        env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        try:
            codes = [process.wait(timeout_s) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for rank, code in enumerate(codes):
            if code:
                tail = (folder / f"{rank}.log").read_text(errors="replace")[-LOG_TAIL:]
                raise RanksFailedError(
                    f"rank {rank} of {world_size}: exit status {code}: "
                    f"{single_line(tail, None) or 'no output'}"
                )
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]
