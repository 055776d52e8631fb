"""The variables of torch's launchers follow from whatever started the process."""

from __future__ import annotations

import os

import pytest

from svilm_fast.core.errors import UserError
from svilm_fast.train.environment import (
    LAUNCHER_VARIABLES,
    environment_without_launcher,
    use_launcher_variables,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch) -> None:
    slurm = [name for name in os.environ if name.startswith("SLURM")]
    for name in (*LAUNCHER_VARIABLES, *slurm):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what the code sets
        monkeypatch.delenv(name)


def start_as_slurm_task(monkeypatch, **changed: str) -> None:
    task = {
        "SLURM_JOB_ID": "123456",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_STEP_NUM_NODES": "2",
    }
    for name, value in (task | changed).items():
        monkeypatch.setenv(name, value)


def seen() -> list[str | None]:
    return [os.environ.get(name) for name in LAUNCHER_VARIABLES]


def test_without_launcher_there_is_one_rank() -> None:
    use_launcher_variables()
    assert seen()[:4] == ["0", "0", "1", "127.0.0.1"]


def test_only_what_a_launcher_sets_is_left_out() -> None:
    before = dict(os.environ)
    use_launcher_variables()
    assert dict(os.environ) != before
    assert environment_without_launcher() == before


def test_what_a_launcher_set_stays(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    start_as_slurm_task(monkeypatch)
    use_launcher_variables()
    assert seen() == ["3", None, "4", None, None, None]


def test_a_task_of_srun_is_a_rank(monkeypatch) -> None:
    start_as_slurm_task(monkeypatch)
    monkeypatch.setenv("MASTER_ADDR", "node-a")
    use_launcher_variables()
    assert seen() == ["9", "1", "16", "node-a", "23456", None]


def test_tasks_on_one_node_need_no_address(monkeypatch) -> None:
    start_as_slurm_task(monkeypatch, SLURM_STEP_NUM_NODES="1", SLURM_STEP_NUM_TASKS="8")
    use_launcher_variables()
    assert seen()[2:4] == ["8", "127.0.0.1"]
    assert os.environ["LOCAL_WORLD_SIZE"] == "8"


@pytest.mark.parametrize(("node", "ranks"), [("0", "8"), ("1", "8"), ("2", "4"), ("3", "16")])
def test_ranks_of_a_node_are_those_that_slurm_states(monkeypatch, node, ranks) -> None:
    start_as_slurm_task(
        monkeypatch, SLURM_STEP_TASKS_PER_NODE="8(x2),4,16", SLURM_NODEID=node, MASTER_ADDR="a"
    )
    use_launcher_variables()
    assert os.environ["LOCAL_WORLD_SIZE"] == ranks


def test_deepspeed_states_the_ranks_of_a_node_under_its_own_name(monkeypatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_SIZE", "4")
    use_launcher_variables()
    assert os.environ["LOCAL_WORLD_SIZE"] == "4"


def test_tasks_on_several_nodes_need_an_address(monkeypatch) -> None:
    start_as_slurm_task(monkeypatch)
    with pytest.raises(UserError, match=r"without MASTER_ADDR.*scontrol show hostnames"):
        use_launcher_variables()


def test_a_batch_script_is_no_task(monkeypatch) -> None:
    start_as_slurm_task(monkeypatch)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    use_launcher_variables()
    assert seen()[2] == "1"
