"""Weights, moments and average over 2 and 3 ranks: equal to one process, and portable both ways."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from svilm_fast.train.checkpoint.portable import save_portable
from svilm_fast.train.checkpoint.zero_files import read_checkpoint
from svilm_fast.train.engine.optimizer import build_optimizer
from svilm_fast.train.ranks.process_group import Ranks

PROGRAM = Path(__file__).parent / "state_program.py"
PARTS = ("model", "optimizer", "ema")
STAGES = (0, 1, 2, 3)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program() -> ModuleType:
    sys.path.insert(0, str(PROGRAM.parent))
    spec = importlib.util.spec_from_file_location("state_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.pop(0)
    return module


@pytest.fixture(scope="module", params=[2, 3])
def finished(request, tmp_path_factory, run_on_ranks, program: ModuleType, ranks: Ranks) -> Path:
    """One process writes a portable state; the ranks take it over and make states of their own."""
    folder = tmp_path_factory.mktemp(f"ranks_{request.param}")
    alone = program.engine_of(ranks, "deepspeed.zero_stage=1")
    program.run(alone, 0, 3)
    save_portable(alone, folder / "one", 3, {})
    program.run(alone, 3, 5)
    save_portable(alone, folder / "one_further", 5, {})
    alone.close()
    run_on_ranks(request.param, PROGRAM, folder)
    return folder


def state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a portable checkpoint."""
    return {
        f"{part}/{name}": value
        for part in PARTS
        for name, value in load_file(folder / f"{part}.safetensors").items()
    }


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    different = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert different == []


def test_a_state_of_one_process_arrives_whole_in_every_stage(finished: Path) -> None:
    wanted = state(finished / "one")
    assert sum(name.startswith("optimizer/") for name in wanted) == 2 * 4
    for stage in STAGES:
        assert_same(state(finished / f"fp32_{stage}" / "taken"), wanted)
        further = state(finished / f"fp32_{stage}" / "taken_further")
        for name, value in state(finished / "one_further").items():
            torch.testing.assert_close(further[name], value, rtol=2e-5, atol=2e-6)


def test_a_state_of_the_ranks_arrives_whole_in_one_process(
    finished: Path, program: ModuleType, ranks: Ranks, tmp_path: Path
) -> None:
    for made, taken in ((0, 3), (1, 0), (2, 1), (3, 2)):
        source = finished / f"fp32_{made}" / "gathered"
        engine = program.engine_of(ranks, f"deepspeed.zero_stage={taken}", source=source)
        save_portable(engine, tmp_path / "again", 3, {})
        assert_same(state(tmp_path / "again"), state(source))
        engine.close()


def test_a_resumed_run_continues_bit_for_bit_with_its_average(finished: Path) -> None:
    for kind in [f"fp32_{stage}" for stage in STAGES] + ["bf16_1"]:
        assert_same(state(finished / kind / "resumed"), state(finished / kind / "straight"))


def test_converting_the_shards_gives_what_the_ranks_gather(finished: Path) -> None:
    for kind in [f"fp32_{stage}" for stage in STAGES] + ["bf16_1"]:
        found = read_checkpoint(finished / kind / "checkpoints" / "step_00000003")
        assert found.average is not None
        tensors = {f"model/{name}": value for name, value in found.weights.items()}
        tensors |= {f"optimizer/{name}": value for name, value in found.moments.items()}
        tensors |= {f"ema/{name}": value for name, value in found.average.items()}
        assert_same(tensors, state(finished / kind / "gathered"))
        assert found.described["updates"] == 3
        assert found.described["data"] == {"rank": 0}


def test_the_average_over_ranks_is_that_of_plain_torch(
    finished: Path, program: ModuleType, ranks: Ranks
) -> None:
    torch.manual_seed(0)
    model = program.TinyModel(program.WIDTH, 0.0).double()
    model.body[0].bias.requires_grad_(False)
    optimizer = build_optimizer(model, program.tiny_config(*program.SETTINGS).optimizer)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in trained.items()}
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = program.RATE
        optimizer.zero_grad()
        batch = program.tiny_batch(step, program.ROWS)
        model({name: value.double() for name, value in batch.items()}).loss.backward()
        optimizer.step()
        for name, parameter in trained.items():
            average[name] = 0.5 * average[name] + 0.5 * parameter.detach()
    for stage in STAGES:
        found = load_file(finished / f"fp32_{stage}" / "gathered" / "ema.safetensors")
        assert set(found) == set(average)
        for name, value in average.items():
            torch.testing.assert_close(found[name].double(), value, rtol=2e-5, atol=2e-6)
