"""A process group belongs to whoever joined it first."""

from __future__ import annotations

import torch.distributed as dist

from svilm_fast.train.config import DistributedConfig
from svilm_fast.train.ranks import joined_ranks


def test_a_group_that_was_there_before_is_used_and_stays(ranks) -> None:
    before = dist.group.WORLD
    for _ in range(2):
        with joined_ranks(DistributedConfig(device="cpu")) as joined:
            assert (joined.rank, joined.world_size) == (ranks.rank, ranks.world_size) == (0, 1)
        assert dist.is_initialized()
        assert dist.group.WORLD is before
