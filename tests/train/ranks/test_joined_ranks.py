"""A process group belongs to whoever joined it first."""

from __future__ import annotations

import subprocess
import sys

import torch.distributed as dist

from svilm_fast.train.config.schema import DistributedConfig
from svilm_fast.train.environment import environment_without_launcher
from svilm_fast.train.ranks.process_group import joined_ranks


def test_a_group_that_was_there_before_is_used_and_stays(ranks) -> None:
    before = dist.group.WORLD
    for _ in range(2):
        with joined_ranks(DistributedConfig(device="cpu")) as joined:
            assert (joined.rank, joined.world_size) == (ranks.rank, ranks.world_size) == (0, 1)
        assert dist.is_initialized()
        assert dist.group.WORLD is before


JOIN_TWICE = """
import torch.distributed as dist
from svilm_fast.train.config.schema import DistributedConfig
from svilm_fast.train.ranks.process_group import joined_ranks

for _ in range(2):
    with joined_ranks(DistributedConfig(device="cpu")):
        assert dist.is_initialized()
    assert not dist.is_initialized()
try:
    with joined_ranks(DistributedConfig(device="cpu")):
        raise KeyError("inside")
except KeyError:
    assert not dist.is_initialized()
print("left")
"""


def test_a_group_that_it_joined_itself_is_left() -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOIN_TWICE],
        env=environment_without_launcher(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "left"
