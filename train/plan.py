"""What a configuration amounts to before anything is trained: parameters, FLOPs, bytes."""

from __future__ import annotations

import json
import os

from svilm_fast.train.config import RunConfig
from svilm_fast.train.deepspeed_config import build_deepspeed_config


def launched_ranks() -> int:
    """Return the number of ranks a launcher announced, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def deepspeed_json(config: RunConfig) -> str:
    """Return the dictionary that DeepSpeed would get, as JSON."""
    return json.dumps(build_deepspeed_config(config, launched_ranks()), indent=2)


def step_flops(config: RunConfig) -> float:
    return 0.0


def describe(config: RunConfig) -> str:
    return ""
