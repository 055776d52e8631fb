"""`svilm plan`, the dry run, and figures of a running step."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from svilm_fast.cli import app
from svilm_fast.train.config.load import load_config
from svilm_fast.train.plan.devices import peak_flops
from svilm_fast.train.plan.dry_run import deepspeed_json, describe
from svilm_fast.train.plan.flops import flops_of_step
from svilm_fast.train.run.throughput import Meter, peak_memory_bytes, processor_seconds
from svilm_fast.train.run_app import run_app

AUTO = [
    "training.micro_batch=auto",
    "deepspeed.zero_stage=auto",
    "video.checkpoint_activations=auto",
    "text.checkpoint_activations=auto",
]


def test_flops_of_the_encoders_grow_with_the_batch_and_shrink_with_dropping() -> None:
    small = flops_of_step(load_config("demo", ["training.global_batch=8"]))
    large = flops_of_step(load_config("demo", ["training.global_batch=16"]))
    assert large.video.total == 2 * small.video.total
    assert large.objectives.total == 4 * small.objectives.total
    dropped = flops_of_step(load_config("demo", ["training.global_batch=8", "video.drop.rate=0.5"]))
    assert 0.4 * small.video.total < dropped.video.total < 0.6 * small.video.total


def test_a_dry_run_allocates_nothing_and_knows_the_launched_ranks(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    shown, fits = describe(load_config("svilm_base", ["distributed.device=cuda"]))
    assert fits
    assert "1024 pairs over 8 ranks, 128 each" in shown
    assert "3,136 of 3,136 video tokens encoded" in shown
    assert "chosen: zero_stage=1 micro_batch=null" in shown


def test_the_dictionary_of_deepspeed_is_shown_with_auto_resolved() -> None:
    config = load_config("demo", ["deepspeed.zero_stage=auto", "training.memory_bytes=8000000000"])
    assert json.loads(deepspeed_json(config))["zero_optimization"]["stage"] == 1


def test_a_plan_for_programs(capsys) -> None:
    code = run_app(app, ["plan", "-c", "svilm_base", "--gpus", "16", "--gpu", "h200", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["fits"]
    assert found["local_batch"] == 64
    assert found["peak_bytes"] < found["usable_bytes"] < found["memory_bytes"] == 141e9
    assert {sent["part"] for sent in found["traffic"]} == {"contrast", "grounding", "ZeRO 1"}


def test_what_does_not_fit_ends_with_status_2_and_says_what_would(capsys) -> None:
    batch = "training.global_batch=1048576"
    code = run_app(app, ["plan", "-c", "svilm_base", "--gpus", "8", "--memory", "80GiB", batch])
    shown = capsys.readouterr().out
    assert code == 2
    assert "does not fit 80.00 GiB" in shown
    assert "it would fit with memory of" in shown
    assert "training.micro_batch=auto" in shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--gpu", "h900"], "unknown GPU 'h900': use one of a100-80"),
        (["--memory", "much"], "cannot read the memory size 'much'"),
        (["--gpus", "12", "--nodes", "5"], "cannot be spread evenly over --nodes 5"),
        (["--network", "pigeon"], "unknown network 'pigeon'"),
        (["--gpus", "3"], "not divisible by 3 ranks"),
        (["--gpu", "cpu"], "--gpu cpu needs --memory"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys) -> None:
    assert run_app(app, ["plan", "-c", "svilm_base", *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.strip().splitlines()) == 1


def test_peaks_are_found_by_the_longest_name() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("Some other card") is None


def test_a_meter_leaves_pauses_out() -> None:
    now, used = [100.0], [40.0]
    meter = Meter(
        10, 2, flops_per_step=6e12, peak=1e15, clock=lambda: now[0], processor=lambda: used[0]
    )
    assert meter.read() == {}
    meter.add_step(0.25)
    now[0], used[0] = now[0] + 2.0, used[0] + 3.0
    with meter.paused():
        now[0], used[0] = now[0] + 5.0, used[0] + 9.0
    figures = meter.read()
    assert figures["processor_seconds_per_step"] == pytest.approx(3.0)
    assert figures["clips_per_second"] == pytest.approx(5.0)
    assert figures["data_wait_share"] == pytest.approx(0.125)
    assert figures["utilisation"] == pytest.approx(3e12 / 2e15)
    assert meter.read() == {}


def test_processor_seconds_count_children() -> None:
    """A child that works for 0.3 s of processor time, while it lives and after it has ended."""
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = processor_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alive = processor_seconds()
        child.communicate(b"\n")
    assert alive - before > 0.25
    assert processor_seconds() - before > 0.25


def test_a_meter_without_counted_flops_tells_the_rest() -> None:
    now = [100.0]
    meter = Meter(10, 2, flops_per_step=None, peak=1e15, clock=lambda: now[0])
    meter.add_step(0.25)
    now[0] += 2.0
    assert meter.read().keys() == {"clips_per_second", "seconds_per_step", "data_wait_share"}


def test_without_a_recipe_the_plan_is_that_of_svilm_base(capsys) -> None:
    assert run_app(app, ["plan", "--gpus", "1024"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("svilm_base: 238,148,835 parameters")
    assert "1024 pairs over 1024 ranks, 1 each" in shown
    assert "the recipe leaves nothing open" in shown


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    ballast = torch.ones(300 * 2**18)
    code = (
        "import torch; from svilm_fast.train.run.throughput import peak_memory_bytes as peak; "
        "torch.ones(100 * 2**18); print(peak(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = peak_memory_bytes(torch.device("cpu"))
    assert ballast.nbytes < own
    assert 100 * 2**20 < int(done.stdout) < own
