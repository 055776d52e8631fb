"""Two gloo ranks under every ZeRO stage against one process with the whole batch."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).parent / "rank_program.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_on_ranks) -> Path:
    """Run the program on two ranks, with a PATH on which no compiler can be found."""
    folder = tmp_path_factory.mktemp("two_ranks")
    run_on_ranks(
        2,
        PROGRAM,
        folder,
        PATH=str(folder / "empty"),
        TORCH_EXTENSIONS_DIR=str(folder / "extensions"),
    )
    return folder


def told(folder: Path, stage: int) -> list[dict]:
    return [json.loads((folder / f"rank_{rank}.json").read_text())[str(stage)] for rank in (0, 1)]


@pytest.fixture(scope="module")
def reference(plain_training) -> dict[str, torch.Tensor]:
    model, optimizer, batch_of = plain_training
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        optimizer.zero_grad()
        model(batch_of(step)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return {name: value.detach() for name, value in copy.deepcopy(model).named_parameters()}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_parameters_equal_those_of_one_process(finished: Path, reference, stage: int) -> None:
    weights = load_file(finished / f"stage_{stage}" / "portable" / "model.safetensors")
    assert set(weights) == set(reference)
    for name, value in reference.items():
        torch.testing.assert_close(weights[name], value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_step_is_the_same_bit_for_bit(finished: Path, stage: int) -> None:
    first, second = told(finished, stage)
    assert first["resumed_alike"]
    assert second["resumed_alike"]
    assert (first["data"], second["data"]) == ({"rank": 0}, {"rank": 1})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_all_ranks_agree_about_one_ranks_bad_loss_and_signal(finished: Path, stage: int) -> None:
    for rank in told(finished, stage):
        assert rank["bad_applied"] is False
        assert rank["stop_signal"] == 15


def test_what_the_first_rank_made_or_met_reaches_both(finished: Path) -> None:
    for rank in (0, 1):
        heard = json.loads((finished / f"rank_{rank}.json").read_text())
        assert heard["value_of_first"] == "made by 0"
        assert "absent holds no portable checkpoint" in heard["error_of_first"]


def test_nothing_was_compiled(finished: Path) -> None:
    assert not list((finished / "extensions").rglob("*"))
