"""What is chosen for a memory size, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from svilm_fast.train.config.load import load_config
from svilm_fast.train.plan import report
from svilm_fast.train.plan.chooser import (
    GAIN,
    DoesNotFitError,
    choose,
    options,
    usable_bytes,
)
from svilm_fast.train.plan.devices import CPU, GIB, GPUS, parse_bytes
from svilm_fast.train.plan.links import Links, links_of
from svilm_fast.train.plan.memory import memory
from svilm_fast.train.plan.resolve import open_settings, resolve, resolve_on_ranks
from svilm_fast.train.plan.step_time import step_time
from svilm_fast.train.plan.workload import Choice, Workload, workload_of

H100 = GPUS["h100"]
LINKS = links_of(H100, None, 8)
AUTO = [
    "training.micro_batch=auto",
    "deepspeed.zero_stage=auto",
    "video.checkpoint_activations=auto",
    "text.checkpoint_activations=auto",
    "objectives.workspace_bytes=auto",
]


@pytest.fixture(scope="module")
def base() -> Workload:
    return workload_of(load_config("svilm_base", AUTO), 8, on_gpu=True)


def test_less_memory_costs_speed_step_by_step(base) -> None:
    seconds, peaks = [], []
    for size in (400, 141, 80, 40, 12):
        decision = choose(base, H100, LINKS, size * GIB)
        assert decision.chosen.peak <= decision.usable
        seconds.append(decision.chosen.seconds)
        peaks.append(decision.chosen.peak)
    assert seconds == sorted(seconds)
    assert seconds[0] < seconds[-1]
    assert peaks == sorted(peaks, reverse=True)


def test_plenty_of_memory_needs_neither_cache_nor_checkpoints(base) -> None:
    chosen = choose(base, H100, LINKS, 1000 * GIB).chosen.choice
    assert chosen == Choice(1, False, False, None, "coalesce", None)


def test_everything_faster_than_the_choice_is_rejected_for_its_need(base) -> None:
    decision = choose(base, H100, LINKS, 80 * GIB)
    faster = [o for o, _ in decision.rejected if o.seconds < decision.chosen.seconds]
    assert faster
    assert all(option.peak > decision.usable for option in faster)
    assert all("GiB too much" in why for o, why in decision.rejected if o in faster)
    assert "chosen: zero_stage=" in decision.reasons()[0]


@pytest.fixture(scope="module")
def on_two_cpus() -> Workload:
    return workload_of(load_config("demo", AUTO), 2, on_gpu=False)


LOOPBACK = Links("loopback", 2, CPU.nvlink, CPU.network)


def test_a_small_predicted_gain_does_not_buy_a_higher_stage(on_two_cpus) -> None:
    decision = choose(on_two_cpus, CPU, LOOPBACK, 16 * GIB)
    assert decision.chosen.choice == Choice(1, False, False, None, "coalesce", None)
    (faster, why), *_ = [(o, w) for o, w in decision.rejected if o.choice.zero_stage == 3]
    assert 1 < decision.chosen.seconds / faster.seconds <= 1 + GAIN
    assert faster.peak <= decision.usable
    assert "must gain more than 10%" in why
    assert "a faster one is predicted to gain no more than 10%" in "\n".join(decision.reasons())


def test_a_large_predicted_gain_does(on_two_cpus) -> None:
    # Hardly any computing: of the step only ZeRO's traffic is left, of which stage 3 has less.
    quick = replace(CPU, peak=CPU.peak * 1e6)
    small = on_two_cpus.with_batch(4, 2)
    slow = replace(LOOPBACK, intra=LOOPBACK.intra / 100, inter=LOOPBACK.inter / 100)
    decision = choose(small, quick, slow, 16 * GIB)
    at_stage_1 = [o for o, _ in decision.rejected if o.choice.zero_stage == 1]
    assert decision.chosen.choice.zero_stage == 3
    assert at_stage_1[0].seconds > (1 + GAIN) * decision.chosen.seconds
    assert at_stage_1[0].peak <= decision.usable


def test_the_lower_stage_must_fit(base) -> None:
    decision = choose(base, H100, LINKS, 5.5 * GIB)
    assert decision.chosen.choice.zero_stage == 2
    told = [why for option, why in decision.rejected if option.choice.zero_stage == 1]
    assert told
    assert all("GiB too much" in why for why in told)


def test_what_is_said_to_fit_does(base) -> None:
    huge = base.with_batch(2**17, 8)
    with pytest.raises(DoesNotFitError, match="it would fit with memory of") as raised:
        choose(huge, H100, LINKS, 20 * GIB)
    words = str(raised.value).split()
    needed = float(words[words.index("memory", words.index("fit", 20)) + 2])
    assert choose(huge, H100, LINKS, (needed + 0.1) * GIB).chosen.peak > 0
    named = next(word for word in words if word.startswith("training.global_batch="))
    smaller = base.with_batch(int(named.partition("=")[2]), 8)
    assert choose(smaller, H100, LINKS, 20 * GIB).chosen.peak <= usable_bytes(20 * GIB, on_gpu=True)


def test_given_settings_are_not_touched() -> None:
    config = load_config("svilm_base", ["training.micro_batch=16", "deepspeed.zero_stage=3"])
    workload = workload_of(config, 8, on_gpu=True)
    assert {c.zero_stage for c in options(workload)} == {3}
    assert {c.micro_batch for c in options(workload)} == {16}
    assert {c.checkpoint_video for c in options(workload)} == {True}


def test_bf16_parameters_of_stage_1_are_not_coalesced() -> None:
    config = load_config("svilm_base", ["training.precision=bf16", "training.micro_batch=16"])
    assert {c.reduction for c in options(workload_of(config, 8, on_gpu=True))} == {"boundary"}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_memory_falls_with_the_micro_batch_and_the_ranks(base, stage) -> None:
    reduction = "boundary" if stage == 0 else "coalesce"
    peaks = [memory(base, Choice(stage, True, True, m, reduction)).peak for m in (64, 16, 4)]
    assert peaks == sorted(peaks, reverse=True)
    wider = base.with_batch(8192, 64)
    here = memory(base, Choice(stage, True, True, 16, reduction)).resting
    there = memory(wider, Choice(stage, True, True, 16, reduction)).resting
    assert (there["optimizer moments"] < here["optimizer moments"]) == (stage > 0)
    assert (there["parameters"] < here["parameters"]) == (stage == 3)


def test_an_average_of_the_weights_is_counted() -> None:
    config = load_config("svilm_base", ["ema.decay=0.999"])
    workload = workload_of(config, 8, on_gpu=True)
    found = memory(workload, Choice(1, True, True)).resting
    assert found["moving average"] == 4 * workload.parameters.trained / 8


def test_checkpointing_a_locked_tower_is_never_worth_it() -> None:
    locked = [*AUTO, "video.lock=true"]
    workload = workload_of(load_config("svilm_base", locked), 8, on_gpu=True)
    plain, checkpointed = (Choice(1, video, False) for video in (False, True))
    assert memory(workload, checkpointed).peak == memory(workload, plain).peak
    times = {step_time(workload, c, LINKS, H100.peak).total for c in (plain, checkpointed)}
    assert len(times) == 1
    assert choose(workload, H100, LINKS, 80 * GIB).chosen.choice == plain


def test_what_a_plan_does_not_count_is_said() -> None:
    config = load_config("svilm_base", AUTO)
    compiled = load_config("svilm_base", [*AUTO, "training.compile=blocks"])
    _, silent = resolve(config, 8, H100, LINKS, 80e9)
    _, reasons = resolve(compiled, 8, H100, LINKS, 80e9)
    assert reasons[:-1] == silent
    assert reasons[-1].startswith("note: training.compile=blocks is planned as if it were off")
    assert reasons[-1] in report.text(
        report.make_plan(workload_of(compiled, 8, on_gpu=True), H100, LINKS, 80e9)
    )


def test_every_auto_is_resolved_with_reasons() -> None:
    config = load_config("svilm_base", AUTO)
    assert len(open_settings(config)) == 6
    settled, reasons = resolve(config, 8, H100, LINKS, 80e9)
    assert open_settings(settled) == ["distributed.gradient_reduction"]
    assert reasons[0].startswith("plan for 74.51 GiB per rank, of which 10% and 1.5 GiB stay free")
    assert any(line.startswith("rejected: ") for line in reasons)
    assert settled.training.global_batch == config.training.global_batch


def test_a_run_that_goes_on_keeps_its_choices(ranks, tmp_path) -> None:
    recorded = tmp_path / "config.yaml"
    recorded.write_text(yaml.safe_dump({"deepspeed": {"zero_stage": 2}}))
    overrides = ["deepspeed.zero_stage=auto", "training.memory_bytes=8000000000"]
    config = load_config("demo", overrides)
    settled, reasons = resolve_on_ranks(config, ranks, recorded)
    assert settled.deepspeed.zero_stage == 2
    assert reasons[0] == f"kept from {recorded}: deepspeed.zero_stage"
    fresh, _ = resolve_on_ranks(config, ranks)
    assert fresh.deepspeed.zero_stage == 1


def test_without_auto_nothing_is_planned(ranks) -> None:
    config = load_config("demo")
    assert resolve_on_ranks(config, ranks) == (config, [])


@pytest.mark.parametrize(
    "text, size", [("80GiB", 80 * GIB), ("141GB", 141e9), ("512M", 512e6), ("1.5 kib", 1536)]
)
def test_sizes_are_read(text, size) -> None:
    assert parse_bytes(text) == size
