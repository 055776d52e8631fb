"""Sizes before a run."""

from __future__ import annotations

import pytest

from svilm_fast.train.load_config import load_config
from svilm_fast.train.plan import describe, flops_of_step, state_bytes
from svilm_fast.train.throughput import Meter, peak_flops


@pytest.mark.parametrize(
    ("stage", "precision", "rule", "wanted"),
    [
        (0, "fp32", "adamw", 4 + 4 + 8),
        (1, "fp32", "adamw", 4 + 4 + 8 / 4),
        (2, "bf16_autocast", "sgd", 4 + 4 / 4 + 4 / 4),
        (3, "bf16", "adamw", (2 + 2 + 12) / 4),
    ],
)
def test_bytes_per_parameter_and_rank(stage, precision, rule, wanted) -> None:
    config = load_config(
        None,
        [
            f"deepspeed.zero_stage={stage}",
            f"training.precision={precision}",
            f"optimizer.name={rule}",
        ],
    )
    assert sum(state_bytes(1, config, 4).values()) == wanted


def test_flops_of_the_encoders_grow_with_the_batch_and_shrink_with_dropping() -> None:
    small = flops_of_step(load_config("demo", ["training.global_batch=8"]))
    large = flops_of_step(load_config("demo", ["training.global_batch=16"]))
    assert large.video.total == 2 * small.video.total
    assert large.objectives.total == 4 * small.objectives.total
    dropped = flops_of_step(load_config("demo", ["training.global_batch=8", "video.drop.rate=0.5"]))
    assert 0.4 * small.video.total < dropped.video.total < 0.6 * small.video.total


def test_a_dry_run_allocates_nothing_and_knows_the_launched_ranks(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    shown = describe(load_config("svilm_base"))
    assert "1024 pairs over 8 ranks, 128 each" in shown
    assert "3,136 of 3,136 video tokens encoded" in shown


def test_peaks_are_found_by_the_longest_name() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("Some other card") is None


def test_a_meter_leaves_pauses_out() -> None:
    now = [100.0]
    meter = Meter(10, 2, flops_per_step=6e12, peak=1e15, clock=lambda: now[0])
    assert meter.read() == {}
    meter.add_step(0.25)
    now[0] += 7.0
    meter.pause(5.0)
    figures = meter.read()
    assert figures["clips_per_second"] == pytest.approx(5.0)
    assert figures["data_wait_share"] == pytest.approx(0.125)
    assert figures["utilisation"] == pytest.approx(3e12 / 2e15)
    assert meter.read() == {}
