"""Starts the ranks of one measurement on this machine and collects what rank 0 says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svilm_fast.train.environment import free_port

WORKER = "svilm_fast.bench.comm.worker"


class RanksFailedError(RuntimeError):
    """A rank of a measurement ended with an error."""


def run_ranks(world_size: int, arguments: Sequence[str], *, timeout_s: float = 600.0) -> Any:
    """Run the worker on `world_size` processes with one thread each; returns rank 0's JSON.

    Raises RanksFailedError with the last line of the first rank that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        port = str(free_port())
        processes = []
        for rank in range(world_size):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }
            log = (Path(folder) / f"rank_{rank}.log").open("w")
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", WORKER, str(result), *arguments],
                    env=os.environ | variables,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
            log.close()
        try:
            codes = [process.wait(timeout_s) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for rank, code in enumerate(codes):
            if code:
                log_lines = (Path(folder) / f"rank_{rank}.log").read_text().strip().splitlines()
                raise RanksFailedError(f"rank {rank} of {world_size}: {(log_lines or ['?'])[-1]}")
        return json.loads(result.read_text())
