"""A port that accepts and never answers ends a rank within the timeout of the start."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from svilm_fast.train.environment import environment_without_launcher

JOIN = """
from svilm_fast.train.ranks import process_group as ranks
from svilm_fast.train.config.schema import DistributedConfig

ranks.GRACE_SECONDS = 1.0
ranks.start_ranks(
    DistributedConfig(device="cpu", timeout_seconds=1.0, solo_timeout_seconds=3.0)
)
"""


@pytest.mark.slow
def test_a_port_that_never_answers_ends_the_rank_with_a_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = subprocess.run(
            [sys.executable, "-c", JOIN],
            env=environment_without_launcher() | launched | place,
            capture_output=True,
            text=True,
            timeout=90,
        )
    assert done.returncode == 4, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: rank 1: the 2 ranks did not connect at 127.0.0.1:{port}")
    assert "distributed.solo_timeout_seconds=3" in line
    assert "accepted the connection and never replied" in line
