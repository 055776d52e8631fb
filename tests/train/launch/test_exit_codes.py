"""The launchers end with the exit code of their ranks and pass signals on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from svilm_fast.train.environment import environment_without_launcher, free_port
from svilm_fast.train.launch.deepspeed import quiet
from svilm_fast.train.launch.torchrun import exit_code_of

RANK = """
import os, signal, sys, time
kind = sys.argv[-1]
def say(text):
    os.write(1, text.encode() + b"\\n")  # in one piece: the ranks share this pipe
say(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}")
if kind == "kill" and os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if kind.isdigit():
    sys.exit(int(kind))
def save(number, _):
    time.sleep(0.5)
    say("saved")
    sys.exit(128 + number)
for name in ("SIGTERM", "SIGUSR1", "SIGHUP"):
    signal.signal(getattr(signal, name), save)
say("waiting")
while True:
    time.sleep(0.05)
"""


def launch(launcher: str, tmp_path: Path, kind: str) -> subprocess.Popen:
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    options = {
        "torchrun": ["--nproc-per-node", "2", "--master-port", str(free_port())],
        "deepspeed": ["--num_accelerators", "2", "--master_port", str(free_port())],
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            f"svilm_fast.train.launch.{launcher}",
            *options[launcher],
            str(program),
            kind,
        ],
        env=environment_without_launcher() | {"DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_signal_becomes_the_code_that_a_shell_reports() -> None:
    assert [exit_code_of(code) for code in (0, 2, 143, -9)] == [0, 2, 143, 137]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "kind", "code"),
    [
        ("torchrun", "3", 3),
        ("torchrun", "kill", 137),
        ("deepspeed", "3", 3),
        ("deepspeed", "kill", 247),
    ],
)
def test_the_exit_code_of_a_rank_reaches_the_caller(
    launcher: str, kind: str, code: int, tmp_path: Path
) -> None:
    process = launch(launcher, tmp_path, kind)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert " of 2" in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_signal_reaches_the_ranks_which_may_take_their_time(
    launcher: str, number: signal.Signals, tmp_path: Path
) -> None:
    process = launch(launcher, tmp_path, "wait")
    waiting = 0
    for line in process.stdout:
        waiting += line.startswith("waiting")
        if waiting == 2:
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert output.count("saved") == 2


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["--num_gpus", "2", "--module", "program"], ["--quiet"]),
        (["--log_level", "info", "--module", "program"], []),
        (["--log_level=info", "--module", "program"], []),
        (["-q", "--module", "program"], []),
        (["--module", "program", "--log_level", "info"], ["--quiet"]),
    ],
)
def test_the_launcher_is_quiet_unless_a_level_is_given(given: list[str], added: list[str]) -> None:
    assert quiet(given) == added
