"""A rank that is killed under a launcher: the other's message comes before the launcher's end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from svilm_fast.core.errors import EXIT_RANK_LOST
from svilm_fast.train.config.load import dump_config
from svilm_fast.train.environment import environment_without_launcher, free_port

START_SECONDS = 200.0
OPTIONS = {
    "torchrun": ["--nproc-per-node", "2", "--master-port"],
    "deepspeed": ["--num_accelerators", "2", "--master_port"],
}


def rank_process(launcher: int, rank: int) -> psutil.Process:
    for process in psutil.Process(launcher).children(recursive=True):
        if "svilm_fast.train.pretrain" not in process.cmdline():
            continue
        if process.environ().get("RANK") == str(rank):
            return process
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "killed"), [("torchrun", 137), ("deepspeed", 247)])
def test_the_survivor_of_a_killed_rank_names_it(
    configure, tmp_path: Path, launcher: str, killed: int
) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "output"
    settings = ("training.steps=100000", "evaluation.at_end=false")
    recipe.write_text(dump_config(configure(*settings)))
    start = [sys.executable, "-m", f"svilm_fast.train.launch.{launcher}", *OPTIONS[launcher]]
    module = "-m" if launcher == "torchrun" else "--module"
    with output.open("w") as file:
        run = subprocess.Popen(
            [*start, str(free_port()), module, "svilm_fast.train.pretrain", "-c", str(recipe)],
            env=environment_without_launcher() | {"DS_ACCELERATOR": "cpu"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
            assert run.poll() is None, output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        rank_process(run.pid, 1).kill()
        # A launcher looks at its ranks from time to time and ends with the code of whichever ended
        # rank it looks at first: the killed one's, or the survivor's, who by then has said why.
        assert run.wait(60) in (killed, EXIT_RANK_LOST), output.read_text()
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGTERM)
            run.wait(60)
    errors = [line for line in output.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output.read_text()
    assert "rank 1 (host " in errors[0]
    assert "exited without an error report" in errors[0]
