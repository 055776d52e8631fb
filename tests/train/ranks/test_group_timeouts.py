"""Every process group of a run has the timeout of the run, also those that DeepSpeed makes."""

from __future__ import annotations

from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist

from svilm_fast.train.config.schema import DistributedConfig


def timeout_of(group: dist.ProcessGroup) -> timedelta:
    return group._get_backend(torch.device("cpu")).options._timeout


def test_groups_that_deepspeed_makes_have_the_timeout_of_the_run(ranks) -> None:
    group = deepspeed.comm.new_group([0])
    expected = timedelta(seconds=DistributedConfig().solo_timeout_seconds)
    assert timeout_of(group) == timeout_of(dist.group.WORLD) == expected
