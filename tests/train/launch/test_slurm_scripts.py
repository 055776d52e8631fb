"""The Slurm scripts, under stand-ins for srun and scontrol that start the real run on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import svilm_fast.train.launch as launch
from svilm_fast.data.world import render_world
from svilm_fast.train.environment import environment_without_launcher
from tests.train.launch.two_nodes import SMALL

SCRIPTS = Path(launch.__path__[0])
JOB = "4711"
STEPS = 25
WAIT_SECONDS = 240.0


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_bash_can_read_the_script(script: str) -> None:
    result = subprocess.run(
        ["bash", "-n", str(SCRIPTS / script)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    render_world(folder, train=24, val=6, test=6, size=32, frames=8, workers=1, progress=False)
    return folder


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Start a batch script as slurmd would; `log` in the folder lists what Slurm was asked for."""
    commands = tmp_path / "bin"
    commands.mkdir()
    fake_srun = Path(__file__).parent / "fake_srun.py"
    (commands / "srun").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake_srun}" "$@"\n')
    (commands / "scontrol").write_text(
        '#!/bin/sh\nif [ "$1" = show ]; then printf "%s\\n" $FAKE_NODES; '
        'else echo "$@" >>"$FAKE_LOG"; fi\n'
    )
    for command in commands.iterdir():
        command.chmod(0o755)

    def start(script: str, nodes: str, per_node: int, *arguments: str) -> subprocess.Popen:
        described = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "RANKS": "1",
            "FAKE_NODES": nodes,
            "FAKE_LOG": str(tmp_path / "log"),
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": "unused",
            "SLURM_JOB_NUM_NODES": str(len(nodes.split())),
            "SLURM_NTASKS_PER_NODE": str(per_node),
            "DS_ACCELERATOR": "cpu",
        }
        with (tmp_path / "output").open("a") as output:
            return subprocess.Popen(
                ["bash", str(SCRIPTS / script), *arguments],
                env=environment_without_launcher() | described,
                cwd=tmp_path,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    return start


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.is_file() and metrics.read_text().count("\n") >= step:
            return
        time.sleep(0.05)
    pytest.fail((run.parent / "output").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "nodes", "per_node"),
    [
        ("slurm_tasks.sh", "127.0.0.1", 2),
        ("slurm_torchrun.sh", "127.0.0.1 127.0.0.2", 1),
        ("slurm_deepspeed.sh", "127.0.0.1 127.0.0.2", 1),
    ],
)
def test_near_the_time_limit_the_job_saves_and_goes_back_into_the_queue(
    submit, world: Path, tmp_path: Path, script: str, nodes: str, per_node: int
) -> None:
    run = tmp_path / "run"
    data = [f"data.{split}={world / split}" for split in ("train", "val", "test")]
    settings = ["--config", "demo", *SMALL, *data, f"run.dir={run}", f"training.steps={STEPS}"]
    job = submit(script, nodes, per_node, *settings)
    wait_for_step(run, 2, job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(WAIT_SECONDS) == 143, (tmp_path / "output").read_text()
    assert (tmp_path / "log").read_text().splitlines() == ["step started", f"requeue {JOB}"]
    saved = int((run / "checkpoints" / "latest").read_text().removeprefix("step_"))
    assert 2 <= saved < STEPS

    again = submit(script, nodes, per_node, *settings)
    output = tmp_path / "output"
    assert again.wait(WAIT_SECONDS) == 0, output.read_text()
    assert f"resumed at step {saved}" in output.read_text()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert (tmp_path / "log").read_text().splitlines()[2:] == ["step started"]
    assert not list(tmp_path.glob("hostfile.*"))


@pytest.mark.slow
def test_another_ending_ends_the_job_with_the_exit_code_of_the_run(submit, tmp_path: Path) -> None:
    job = submit("slurm_torchrun.sh", "127.0.0.1", 1, "--config", "demo", "run.nonsense=1")
    assert job.wait(WAIT_SECONDS) == 2
    assert "unknown key 'run.nonsense'" in (tmp_path / "output").read_text()
    assert (tmp_path / "log").read_text().splitlines() == ["step started"]
