"""Wrong use and faults of whole runs on gloo ranks: every rank stops, with the same clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from svilm_fast.train.config.load import dump_config
from svilm_fast.train.config.schema import DistributedConfig
from svilm_fast.train.environment import environment_without_launcher
from svilm_fast.train.folder.manifest import write_manifest

PROGRAM = Path(__file__).parent / "fault_program.py"
TIMEOUT = 8.0
# What may pass between the fault and the last rank's end (and the timeout, where one must pass).
LIMIT = TIMEOUT + 5.0


@pytest.fixture(scope="module")
def program() -> Iterator[subprocess.Popen]:
    """The process from which the ranks of all cases are forked."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        env=environment_without_launcher(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait(60)


@pytest.fixture
def end_of(program, configure, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the small recipe with a fault; returns exit codes and outputs of the ranks."""

    def run(*overrides: str, world_size: int = 2, **case: Any) -> dict[str, Any]:
        settings = (
            "evaluation.at_end=false",
            "report.at_end=false",
            "checkpoint.portable_at_end=false",
            f"distributed.timeout_seconds={TIMEOUT}",
            "distributed.solo_timeout_seconds=300",
        )
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(dump_config(configure(*settings, *overrides)))
        described = {
            "folder": str(tmp_path),
            "world_size": world_size,
            "arguments": ["--config", str(recipe)],
            "limit": LIMIT,
        }
        program.stdin.write(json.dumps(described | case) + "\n")
        program.stdin.flush()
        return json.loads(program.stdout.readline())

    return run


def errors_of(end: dict[str, Any], *ranks: int) -> list[str]:
    """The error line of each rank, without the prefix that names the rank."""
    lines = []
    for rank in ranks:
        output = end["outputs"][rank]
        found = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(found) == 1, output
        lines.append(found[0].removeprefix("error: ").removeprefix(f"rank {rank}: "))
    return lines


def test_a_killed_rank_is_named_by_all_others(end_of) -> None:
    fault = {"kind": "kill", "rank": 1, "step": 2}
    end = end_of("training.global_batch=6", world_size=3, faults=[fault])
    assert end["codes"] == [4, -9, 4], end["outputs"]
    first, third = errors_of(end, 0, 2)
    assert first == third
    assert first.startswith("step 2: rank 1 (host ")
    assert "exited without an error report" in first
    assert "--resume" in first


@pytest.mark.slow
def test_the_first_rank_can_be_the_one_that_is_killed(end_of) -> None:
    fault = {"kind": "kill", "rank": 0, "step": 2}
    end = end_of("training.global_batch=6", world_size=3, faults=[fault])
    assert end["codes"] == [-9, 4, 4], end["outputs"]
    second, third = errors_of(end, 1, 2)
    assert second == third
    assert second.startswith("step 2: rank 0 (host ")
    assert "exited without an error report" in second


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_does_not_answer_is_named_after_the_timeout(end_of, stopped: int) -> None:
    fault = {"kind": "stop", "rank": stopped, "step": 2}
    end = end_of("training.global_batch=6", world_size=3, faults=[fault], not_awaited=[stopped])
    others = [rank for rank in range(3) if rank != stopped]
    assert end["ended_in_time"] == others
    lines = errors_of(end, *others)
    assert lines[0] == lines[1]
    assert f"rank {stopped} (host " in lines[0]
    assert f"did not respond within distributed.timeout_seconds={TIMEOUT:g}" in lines[0]
    # Woken up later, it finds the others gone and ends too.
    assert end["codes"] == [4, 4, 4], end["outputs"]


@pytest.mark.slow
def test_the_error_of_one_rank_is_that_of_all(end_of) -> None:
    end = end_of(faults=[{"kind": "error", "rank": 1, "step": 2}])
    assert end["codes"] == [2, 2], end["outputs"]
    (first,) = errors_of(end, 0)
    assert first.startswith("step 2: rank 1 (host ")
    assert first.endswith("stopped: the worker lost its clip")
    assert errors_of(end, 1) == ["the worker lost its clip"]


@pytest.mark.slow
def test_a_main_thread_that_cannot_hear_is_ended_around(end_of) -> None:
    hang = {"kind": "hang", "rank": 0, "step": 2}
    error = {"kind": "error", "rank": 1, "step": 2}
    end = end_of(faults=[hang, error])
    assert end["codes"] == [2, 2], end["outputs"]
    assert errors_of(end, 0)[0].endswith("stopped: the worker lost its clip")


@pytest.mark.slow
def test_ranks_that_cannot_tell_each_other_still_end(end_of) -> None:
    cut_off = {"kind": "cut_off", "rank": 1, "step": 0}
    end = end_of(faults=[cut_off, {"kind": "kill", "rank": 1, "step": 2}])
    assert end["codes"] == [4, -9], end["outputs"]
    assert "(a firewall), so a rank that stops cannot tell the others why" in end["outputs"][1]
    assert errors_of(end, 0)[0].startswith("another rank exited or does not respond: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "codes", "said"),
    [
        ("leave", [4, 0], "stopped: it exited with code 0"),
        ("vanish", [4, 0], "exited without"),
    ],
)
def test_a_rank_that_exits_early_stops_the_others(end_of, kind: str, codes, said: str) -> None:
    end = end_of(faults=[{"kind": kind, "rank": 1, "step": 2}])
    assert end["codes"] == codes, end["outputs"]
    (first,) = errors_of(end, 0)
    assert first.startswith("step 2: rank 1 (host ")
    assert said in first


@pytest.mark.slow
def test_a_rank_that_leaves_out_a_collective_stops_all(end_of) -> None:
    end = end_of(faults=[{"kind": "skip_agreement", "rank": 1, "step": 2}])
    assert end["codes"] == [4, 4], end["outputs"]
    first, second = errors_of(end, 0, 1)
    assert first == second
    assert "one of them skipped a step or a collective" in first or (
        "the ranks are waiting for each other in different collectives: rank 0 at step 2 in"
        in first
    )


@pytest.mark.slow
def test_a_rank_that_is_a_step_ahead_stops_all(end_of) -> None:
    end = end_of(faults=[{"kind": "step_ahead", "rank": 1, "step": 2}])
    assert end["codes"] == [4, 4], end["outputs"]
    first, second = errors_of(end, 0, 1)
    assert first == second
    assert first.startswith("the ranks are at different steps (from 2 to 3): one of them skipped")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["objectives.grounding.weight=0", "objectives.temporal.weight=0"],
        ["deepspeed.zero_stage=3"],
        ["deepspeed.zero_stage=2", "training.micro_batch=2"],
        ["deepspeed.zero_stage=3", "deepspeed.persistence_elements=0", "training.micro_batch=1"],
    ],
)
def test_unequal_local_batches_are_an_error_on_all_ranks(end_of, settings: list[str]) -> None:
    end = end_of(*settings, faults=[{"kind": "half", "rank": 1, "step": 2}])
    assert end["codes"] == [2, 2], end["outputs"]
    first, second = errors_of(end, 0, 1)
    assert first == second
    # The loss says it, or before it the gradient cache.
    assert "and an equal local batch (drop the last, uneven one)" in first or first.startswith(
        "local batches differ: 2 pairs on one rank, 4 on another; give every rank the same"
    )


@pytest.mark.slow
def test_a_rank_with_other_settings_is_named_before_the_first_step(end_of, tmp_path) -> None:
    other = ["training.global_batch=16", "optimizer.lr=0.5", "run.threads=1"]
    end = end_of(only_on_rank={"1": other})
    assert end["codes"] == [2, 2], end["outputs"]
    assert errors_of(end, 0) == [
        "configuration consistency check: rank 1 was started with optimizer.lr=0.5 "
        "(rank 0: 0.0007), training.global_batch=16 (rank 0: 8); start every node with the same "
        "recipe and settings"
    ]
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.slow
def test_ranks_that_never_come_are_an_error_of_those_that_did(end_of) -> None:
    end = end_of(
        "distributed.solo_timeout_seconds=1", faults=[{"kind": "absent", "rank": 1, "step": 0}]
    )
    assert end["codes"] == [4, 0], end["outputs"]
    (first,) = errors_of(end, 0)
    assert first.startswith("the 2 ranks did not connect at 127.0.0.1:")
    assert "distributed.timeout_seconds=8" in first  # the larger of the two


def test_a_hung_collective_of_a_step_is_reported_within_two_minutes_by_default() -> None:
    assert DistributedConfig().timeout_seconds <= 120


@pytest.mark.slow
def test_a_resume_that_one_rank_refuses_changes_nothing(end_of, tmp_path: Path) -> None:
    assert end_of("training.steps=2")["codes"] == [0, 0]
    run = tmp_path / "run"
    (saved,) = run.glob("checkpoints/step_*")
    of_rank_1 = saved / "data_rank_00001.json"
    of_rank_1.write_text(json.dumps(json.loads(of_rank_1.read_text()) | {"seed": 12345}))
    write_manifest(saved)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    end = end_of(
        "training.steps=4", arguments=["--config", str(tmp_path / "recipe.yaml"), "--resume"]
    )
    assert end["codes"] == [2, 2], end["outputs"]
    assert "the data state was saved with seed 12345" in errors_of(end, 0)[0]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_batch_that_the_ranks_cannot_share_is_refused_before_they_meet(end_of) -> None:
    end = end_of("training.global_batch=8", world_size=3)
    assert end["codes"] == [2, 2, 2], end["outputs"]
    assert end["outputs"][1:] == ["", ""]
    assert errors_of(end, 0) == [
        "training.global_batch=8 is not divisible by 3 ranks; the nearest that are: 6 and 9"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "reduction"),
    [
        *((stage, None) for stage in (0, 1, 2, 3)),
        (0, "auto"),
        *((stage, reduction) for stage in (1, 2, 3) for reduction in ("coalesce", "boundary")),
    ],
)
def test_not_a_number_on_one_rank_changes_no_parameter(
    end_of, tmp_path: Path, stage: int, reduction: str | None
) -> None:
    cached = ["training.micro_batch=2", f"distributed.gradient_reduction={reduction}"]
    end = end_of(
        f"deepspeed.zero_stage={stage}",
        *(cached if reduction else []),
        "training.max_non_finite_steps=2",
        faults=[
            {"kind": "nan_loss", "rank": 1, "step": 2},
            {"kind": "nan_gradient", "rank": 1, "step": 3},
        ],
    )
    assert end["codes"] == [3, 3], end["outputs"]
    assert "step 2 was skipped: loss or gradients are not finite" in end["outputs"][0]
    assert "step 3 are not finite on at least one rank" in errors_of(end, 0)[0]
    for rank in (0, 1):
        skipped = (tmp_path / f"skipped_{rank}").read_text().splitlines()
        assert skipped == ["same=True finite=True"] * 2
