"""The fit of collectives, and the traffic model against what gloo is really given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from svilm_fast.bench.comm import worker
from svilm_fast.bench.comm.command import WORKER
from svilm_fast.bench.comm.fit import fit_line
from svilm_fast.bench.rank_processes import RanksFailedError, run_ranks
from svilm_fast.cli import app
from svilm_fast.train.config.load import load_config
from svilm_fast.train.plan.chooser import fixed_choice
from svilm_fast.train.plan.traffic import Collective, loss_traffic, zero_traffic
from svilm_fast.train.plan.workload import workload_of
from svilm_fast.train.run_app import run_app

# Below and above the size from which texts and nouns are gathered in slices.
LOSSES = [
    ["training.global_batch=16"],
    ["training.global_batch=64", "objectives.grounding.weight=0"],
    ["training.global_batch=16", "objectives.contrast.weight=0"],
    ["training.global_batch=32", "model.embed_dim=64", "data.nouns.per_caption=3"],
    ["training.global_batch=2048", "model.embed_dim=4096", "objectives.grounding.weight=0"],
]
SMALL = ["video.depth=1", "video.num_groups=4", "text.depth=1", "deepspeed.bucket_elements=100000"]


def _sums(collectives: list[Collective]) -> tuple[dict[str, float], dict[str, int]]:
    sizes: dict[str, float] = {}
    calls: dict[str, int] = {}
    for sent in collectives:
        sizes[sent.kind] = sizes.get(sent.kind, 0) + sent.size
        calls[sent.kind] = calls.get(sent.kind, 0) + sent.calls
    return sizes, calls


def _check_losses(world_size: int, found) -> None:
    for entry in found["losses"]:
        workload = workload_of(load_config("demo", entry["overrides"]), world_size, on_gpu=False)
        sizes, calls = _sums(loss_traffic(workload))
        assert entry["bytes"] == sizes
        assert entry["calls"] == calls


def test_the_bytes_of_the_losses_are_those_of_the_model() -> None:
    found, other = run_ranks(WORKER, 2, json.dumps({"losses": LOSSES}))
    assert other["losses"] == found["losses"]
    assert len(found["losses"]) == len(LOSSES)
    _check_losses(2, found)


@pytest.fixture
def found_on_ranks(run_on_ranks, tmp_path):
    """What rank 0 writes, from ranks that are forks: an interpreter each costs seconds."""

    def found(world_size: int, program: str, task: object) -> Any:
        run_on_ranks(world_size, program, tmp_path, json.dumps(task))
        return json.loads((tmp_path / "0.json").read_text())

    return found


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [4, 8])
def test_the_bytes_of_the_losses_are_those_of_the_model_for_more_ranks(
    world_size, found_on_ranks
) -> None:
    _check_losses(world_size, found_on_ranks(world_size, worker.__file__, {"losses": LOSSES}))


ENGINE_PROGRAM = Path(__file__).with_name("engine_ranks.py")
ENGINES = [
    [f"deepspeed.zero_stage={stage}", "training.global_batch=8", *SMALL] for stage in (0, 1, 2)
]
ENGINES.append([*ENGINES[1], "training.micro_batch=2"])


@pytest.mark.slow
def test_the_bytes_of_zero_are_close_to_the_model(found_on_ranks) -> None:
    world_size = 2
    found = found_on_ranks(world_size, str(ENGINE_PROGRAM), ENGINES)
    for overrides, counted in zip(ENGINES, found, strict=True):
        config = load_config("demo", overrides)
        workload = workload_of(config, world_size, on_gpu=False)
        choice = fixed_choice(config, world_size, workload.local_batch)
        sizes, _ = _sums([*loss_traffic(workload), *zero_traffic(workload, choice)])
        for kind, size in sizes.items():
            # Padding of the shards, agreement on finite losses and the gradient norm come on top.
            assert counted[kind] == pytest.approx(size, rel=0.02)


def test_a_rank_that_fails_is_named() -> None:
    with pytest.raises(RanksFailedError, match=r"rank 0 of 1: .*JSONDecodeError"):
        run_ranks(WORKER, 1, "no task")


def test_a_line_is_found_and_never_negative() -> None:
    exact = fit_line((size, 1e-4 + 2e-9 * size) for size in (1e3, 1e5, 1e7))
    assert exact.alpha == pytest.approx(1e-4)
    assert exact.beta == pytest.approx(2e-9)
    assert exact.seconds(1e6) == pytest.approx(2.1e-3)
    falling = fit_line([(1e3, 2e-3), (1e6, 1e-3)])
    assert falling.beta == 0
    assert 1e-3 < falling.alpha < 2e-3
    steep = fit_line([(1e3, 1e-6), (1e6, 1e-2)])
    assert steep.alpha == 0
    with pytest.raises(ValueError, match="two sizes"):
        fit_line([(10, 1.0), (10, 2.0)])


def test_wrong_ranks_are_one_line(capsys) -> None:
    assert run_app(app, ["bench", "comm", "--ranks", "1"]) == 2
    assert "must be numbers of 2 or more" in capsys.readouterr().err
