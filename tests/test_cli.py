"""The command line from data to report, as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from svilm_fast.cli import app
from svilm_fast.train.config.small_model import SMALL_MODEL
from svilm_fast.train.environment import environment_without_launcher, free_port
from svilm_fast.train.run_app import run_app

MODULE = "svilm_fast.train.pretrain"
SMALL = [*SMALL_MODEL, "training.global_batch=8", "logging.every_steps=1"]


def call(*arguments: str) -> int:
    return run_app(app, arguments)


def clean_environment() -> dict[str, str]:
    return environment_without_launcher() | {"DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "world"
    sizes = ["--train", "32", "--val", "6", "--test", "6", "--size", "32", "--frames", "8"]
    assert call("data", "world", "--out", str(folder), *sizes, "--workers", "1") == 0
    return folder


def settings(world: Path, run_dir: Path, *more: str) -> list[str]:
    data = [f"data.{split}={world / split}" for split in ("train", "val", "test")]
    return ["--config", "demo", f"run.dir={run_dir}", *data, *SMALL, *more]


@pytest.fixture(scope="module")
def finished(world: Path) -> Path:
    """A run made by `svilm pretrain` without a launcher and without a compiler on PATH."""
    run_dir = world.parent / "run"
    environment = clean_environment() | {"PATH": str(world.parent / "no-programs-here")}
    started = subprocess.run(
        [sys.executable, "-m", MODULE, *settings(world, run_dir, "training.steps=3")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    assert "step 3/3 | loss " in started.stdout
    return run_dir


def test_training_without_a_terminal_prints_lines_and_leaves_the_layout(finished: Path) -> None:
    for name in (
        "config.yaml",
        "ds_config.json",
        "env.json",
        "metrics.jsonl",
        "tokenizer.json",
        "tensorboard",
        "checkpoints/latest",
        "portable/model.safetensors",
        "evaluation/val_step_00000003.json",
        "report.html",
        "pictures/curves.png",
    ):
        assert (finished / name).exists(), name


def test_retrieval_writes_table_json_and_pictures(finished: Path, capsys) -> None:
    assert call("evaluate", "retrieval", "--run", str(finished), "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "text to video" in shown
    assert "test split, fused captions: 6 videos" in shown
    result = json.loads((finished / "evaluation" / "retrieval.json").read_text())
    assert result["videos"] == 6
    assert result["extra"]["step"] == 3
    assert (finished / "evaluation" / "retrieval_pictures" / "queries_best.png").is_file()


def test_retrieval_takes_a_list_of_videos(finished: Path, tmp_path: Path, capsys) -> None:
    import av
    import numpy as np

    rows = []
    for number in range(3):
        with av.open(str(tmp_path / f"clip{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for step in range(8):
                pixels = np.full((32, 32, 3), 60 * number + 4 * step, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode())
        rows.append(f"ret{number},msr{number},clip{number},a grey picture number {number}")
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["key,vid_key,video_id,sentence", *rows]) + "\n")
    arguments = ["--run", str(finished), "--list", str(listed), "--device", "cpu"]
    assert call("evaluate", "retrieval", *arguments, "--name", "listed", "--set-level", "dsl") == 0
    assert "set-level dsl t2v" in capsys.readouterr().out
    assert call("evaluate", "retrieval", *arguments, "--set-level", "dls") == 2
    assert "unknown set-level score dls" in capsys.readouterr().err
    assert json.loads((finished / "evaluation" / "listed.json").read_text())["videos"] == 3
    assert call("evaluate", "retrieval", *arguments) == 0
    of_list = json.loads((finished / "evaluation" / "list_list.json").read_text())
    assert of_list["protocol"]["title"] == "list list.csv"
    assert call("evaluate", "retrieval", *arguments, "--protocol", "msrvtt-1ka") == 2
    assert "1,000" in capsys.readouterr().err


def test_the_report_is_one_page(finished: Path) -> None:
    assert call("report", "--run", str(finished), "--clips", "2", "--device", "cpu") == 0
    page = (finished / "report.html").read_text()
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_print_config_is_a_recipe(capsys) -> None:
    assert call("pretrain", "--config", "demo", "run.seed=5", "--print-config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["run"]["seed"] == 5


def test_print_ds_config_is_json(capsys) -> None:
    assert call("pretrain", "--config", "svilm_base", "--print-ds-config") == 0
    assert json.loads(capsys.readouterr().out)["gradient_clipping"] == 1.0


def test_a_dry_run_of_the_paper_model_prints_parameters_and_flops(capsys) -> None:
    # A batch of 1024 on one rank does not fit into memory; the exit code says so.
    assert call("pretrain", "--config", "configs/svilm_base.yaml", "--dry-run") == 2
    shown = capsys.readouterr().out
    assert re.search(r"svilm_base: 2\d\d,\d{3},\d{3} parameters", shown)
    assert "FLOPs per step" in shown
    assert call("pretrain", "--config", "demo", "--dry-run") == 0


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "svilm_fast.cli", "config", "explain", "optimizer.lr"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "peak learning rate" in done.stdout


def test_config_commands(capsys) -> None:
    assert call("config", "list") == 0
    assert call("config", "explain", "optimizer.lr") == 0
    assert call("config", "print", "--config", "ablations/contrast_only") == 0
    shown = capsys.readouterr().out
    assert "ablations/contrast_only" in shown
    # The whole first sentence of the recipe's comment, which may span lines.
    assert re.search(r"^demo +The rendered world on two CPU ranks: `make demo`\.$", shown, re.M)
    assert "peak learning rate" in shown
    assert "name: ablation_contrast_only" in shown


def test_doctor_names_ops_and_attention_backends(capsys) -> None:
    assert call("doctor") == 0
    shown = capsys.readouterr().out
    for word in ("deepspeed", "infonce", "grounding", "grouping", "flash_attn", "sdpa"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--config", "dmeo"], "did you mean 'demo'"),
        (["pretrain", "optimizer.lrr=1"], "did you mean 'optimizer.lr'"),
        (["pretrain", "model.attention=flash"], "model.attention: "),
        (["pretrain"], "no configuration was given"),
        (["pretrain", "--config", "demo", "run.dir="], "run.dir: must not be empty"),
        (["evaluate", "retrieval", "--run", "x", "--name", "../../x"], "cannot name files"),
        (["evaluate", "retrieval", "--run", "x", "--name", "a/b"], "cannot name files"),
        (["pretrain", "--init-from", "a", "--weights-from", "b"], "exclude each other"),
        (["evaluate", "retrieval", "--run", "nowhere"], "nowhere is not a run directory"),
        (["report", "--run", "nowhere"], "nowhere is not a run directory"),
        (["data", "pack", "missing.csv", "--out", "packed"], "missing.csv"),
        (["config", "explain", "optimizer.lrr"], "did you mean 'optimizer.lr'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("evaluate retrieval --run x", "--at-least", "nan"),
        ("evaluate retrieval --run x", "--at-least", "inf"),
        ("evaluate retrieval --run x", "--times-colours", "-1"),
        ("data world --out x", "--workers", "0"),
    ],
)
def test_a_number_without_a_meaning_is_wrong_usage(command, option, value, capsys):
    assert call(*command.split(), option, value) == 2
    assert option in capsys.readouterr().err


def launch(program: list[str], world: Path, run_dir: Path, *more: str) -> subprocess.Popen:
    short = ("evaluation.at_end=false", "report.at_end=false")
    return subprocess.Popen(
        [*program, *settings(world, run_dir, *short, *more)],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def deepspeed_program() -> list[str]:
    options = ["--num_accelerators", "2", "--master_port", str(free_port())]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *options, "--module", MODULE]


def torchrun_program() -> list[str]:
    options = ["--nproc-per-node", "2", "--master-port", str(free_port())]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *options,
        "-m",
        "svilm_fast.train.pretrain",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("program", [deepspeed_program, torchrun_program])
def test_both_launchers_train_on_two_ranks(
    program, world: Path, tmp_path: Path, read_records
) -> None:
    length = ("training.steps=2", "report.at_end=true")
    process = launch(program(), world, tmp_path / "run", *length)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    assert [r["step"] for r in read_records(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert json.loads((tmp_path / "run" / "env.json").read_text())["world_size"] == 2
    assert "<html" in (tmp_path / "run" / "report.html").read_text()


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        path = run_dir / "metrics.jsonl"
        if path.is_file() and len(path.read_text().splitlines()) >= step:
            return
        time.sleep(0.2)
    raise AssertionError(f"step {step} was not reached: {process.communicate(timeout=20)[0]}")


@pytest.fixture
def losses(read_records):
    return lambda run_dir: [
        record["loss"] for record in read_records(run_dir / "metrics.jsonl") if "loss" in record
    ]


@pytest.mark.slow
def test_sigterm_saves_on_all_ranks_and_resume_continues_bit_for_bit(
    world: Path, tmp_path: Path, losses
) -> None:
    # The other stages, from a launcher that has imported everything: tests/faults/test_stages.py.
    shared = ("deepspeed.zero_stage=2", "training.steps=24")
    whole = launch(deepspeed_program(), world, tmp_path / "whole", *shared)
    output, _ = whole.communicate(timeout=280)
    assert whole.returncode == 0, output
    broken = launch(deepspeed_program(), world, tmp_path / "broken", *shared)
    wait_for_step(tmp_path / "broken", 5, broken)
    # To launcher and ranks, as a terminal or scheduler does: the launcher does not pass SIGTERM on.
    os.killpg(broken.pid, signal.SIGTERM)
    output, _ = broken.communicate(timeout=60)
    assert broken.returncode != 0
    assert "saved " in output
    stopped = r"stopped by SIGTERM at step \d+, which is saved; continue with --resume"
    assert re.search(stopped, output), output
    assert not (tmp_path / "broken" / "portable").exists()
    resumed = launch(deepspeed_program(), world, tmp_path / "broken", *shared, "--resume")
    output, _ = resumed.communicate(timeout=280)
    assert resumed.returncode == 0, output
    assert "resumed at step " in output
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_the_last_checkpoint_resumes(
    world: Path, tmp_path: Path, read_records
) -> None:
    # Row 3 of tests/faults kills either rank.
    import psutil

    run_dir = tmp_path / "run"
    shared = ("training.steps=24", "checkpoint.every_steps=2")
    broken = launch(deepspeed_program(), world, run_dir, *shared)
    wait_for_step(run_dir, 7, broken)
    ranks = [
        child
        for child in psutil.Process(broken.pid).children(recursive=True)
        if "--local_rank=0" in child.cmdline()
    ]
    ranks[0].kill()
    broken.communicate(timeout=60)
    assert broken.returncode != 0
    resumed = launch(deepspeed_program(), world, run_dir, *shared, "--resume")
    output, _ = resumed.communicate(timeout=280)
    assert resumed.returncode == 0, output
    assert [r["step"] for r in read_records(run_dir / "metrics.jsonl")] == list(range(1, 25))
