"""Links, traffic and step time: the model's own laws, and the documented tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from svilm_fast.train.config.load import load_config
from svilm_fast.train.plan.devices import GPUS
from svilm_fast.train.plan.dry_run import describe
from svilm_fast.train.plan.flops import flops_of_step
from svilm_fast.train.plan.links import Links, links_of
from svilm_fast.train.plan.scaling import scaling_tables
from svilm_fast.train.plan.step_time import executed_flops, step_time
from svilm_fast.train.plan.traffic import loss_traffic, zero_traffic
from svilm_fast.train.plan.workload import Choice, Workload, workload_of

DOCS = Path(__file__).parents[3] / "docs"
H100 = GPUS["h100"]
LINKS = links_of(H100, None, 8)
ROUND = Links("round", 8, intra=1e9, inter=1e8, start=0.0, hop_intra=1e-6, hop_inter=1e-5)


@pytest.fixture(scope="module")
def base() -> Workload:
    return workload_of(load_config("svilm_base"), 8, on_gpu=True)


def test_a_ring_moves_w_minus_1_of_w_parts() -> None:
    # 3 hops, 3/4 of the bytes at 1 GB/s; an all-reduce twice that.
    assert ROUND.seconds("all_gather", 4e6, 4) == pytest.approx(3e-6 + 3e-3)
    assert ROUND.seconds("reduce_scatter", 4e6, 4) == pytest.approx(3e-6 + 3e-3)
    assert ROUND.seconds("all_reduce", 4e6, 4) == pytest.approx(6e-6 + 6e-3)
    assert ROUND.seconds("all_reduce", 4e6, 1) == 0


def test_between_nodes_all_adapters_of_a_node_work() -> None:
    # 16 ranks on 2 nodes: 8 x 0.1 GB/s is the slowest part; 2 hops between nodes, 14 inside.
    seconds = ROUND.seconds("all_gather", 16e6, 16)
    assert seconds == pytest.approx(2e-5 + 14e-6 + 15e6 / 8e8)


def test_an_all_reduce_of_many_nodes_takes_the_tree() -> None:
    assert ROUND.latency("all_reduce", 1024) == pytest.approx(2 * (7e-5 + 7e-6))
    assert ROUND.latency("all_gather", 1024) == pytest.approx(128e-5 + 896e-6)


def test_cache_and_checkpoints_add_forwards(base) -> None:
    flops = flops_of_step(base.config)
    plain, losses = executed_flops(base, Choice(1, False, False))
    assert plain == flops.video.total + flops.text.total
    cached, _ = executed_flops(base, Choice(1, True, False, 32))
    assert cached == plain + 2 * flops.video.forward + flops.text.forward
    # The losses compute their products again in backward: 8 D per pair instead of 6 D.
    assert losses == pytest.approx(flops.objectives.total * 4 / 3)


def test_fp32_products_of_the_losses_run_at_a_sixth_of_the_bf16_rate(base) -> None:
    choice = Choice(1, True, False)
    objectives = base.config.objectives.model_copy(update={"products": "autocast"})
    config = base.config.model_copy(update={"objectives": objectives})
    exact = step_time(base, choice, LINKS, H100.peak)
    rounded = step_time(replace(base, config=config), choice, LINKS, H100.peak)
    assert exact.losses == pytest.approx(6 * rounded.losses)
    assert exact.compute == rounded.compute


def test_traffic_of_the_losses_grows_with_the_batch_alone(base) -> None:
    here = sum(sent.size for sent in loss_traffic(base.with_batch(1024, 8)))
    twice = sum(sent.size for sent in loss_traffic(base.with_batch(2048, 8)))
    wider = sum(sent.size for sent in loss_traffic(base.with_batch(2048, 64)))
    assert twice == pytest.approx(2 * here, rel=0.01)
    assert wider == pytest.approx(twice, rel=0.02)
    assert loss_traffic(base.with_batch(1024, 1)) == []


def test_traffic_of_zero_by_stage(base) -> None:
    size = 4 * base.parameters.total

    def sent(stage: int, micro: int | None = None, reduction: str = "coalesce") -> float:
        choice = Choice(stage, True, True, micro, reduction)  # type: ignore[arg-type]
        return sum(part.size for part in zero_traffic(base, choice))

    assert sent(0) == size
    assert sent(1) == sent(2) == sent(2, 16) == 2 * size
    assert sent(2, 16, "boundary") == (128 / 16 + 1) * size
    assert sent(3) < sent(3, 16) < sent(3, 16, "boundary")


def test_a_slower_network_is_felt_between_nodes_alone(base) -> None:
    choice = Choice(1, True, False)
    fast, slow = (links_of(H100, name, 8) for name in ("ndr400", "ethernet25"))
    one_node = [step_time(base, choice, links, H100.peak).total for links in (fast, slow)]
    assert one_node[0] == one_node[1]
    wide = base.with_batch(1024, 64)
    many = [step_time(wide, choice, links, H100.peak).total for links in (fast, slow)]
    assert many[0] < many[1]


def test_the_recipe_of_a_million_pairs_plans_for_1024_gpus(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1024")
    shown, fits = describe(load_config("svilm_base_1m"))
    assert fits
    assert "1048576 pairs over 1024 ranks, 1024 each" in shown
    assert "chosen: zero_stage=" in shown
    assert "predicted, not measured: h100" in shown


@pytest.mark.slow
def test_the_documented_tables_are_those_of_the_model() -> None:
    """After a change of the model: svilm plan -c svilm_base --scaling --out (the file below)."""
    made = scaling_tables(load_config("svilm_base"), H100, links_of(H100, None, 8))
    assert (DOCS / "scaling-predictions.md").read_text().rstrip() == made.rstrip()
