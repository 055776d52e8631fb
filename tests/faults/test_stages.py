"""A job ended by SIGTERM saves on all ranks and resumes bit for bit, in ZeRO stages 0 and 3.

Row 5 of the table covers stage 1, tests/test_cli.py stage 2 under the `deepspeed` command.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.faults.rig import Rig, same_end, same_losses

STEPS = 24


@pytest.fixture(scope="module")
def rig(tmp_path_factory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("rig"), short=True) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_sigterm_saves_on_all_ranks_and_resume_continues_bit_for_bit(rig: Rig, stage: int) -> None:
    settings = (
        f"deepspeed.zero_stage={stage}",
        f"training.steps={STEPS}",
        "checkpoint.portable_at_end=true",
    )
    whole = rig.reference(*settings)
    root = rig.new_folder("broken") / "run"
    broken = rig.start(root, *settings)
    broken.come_to(lambda: broken.steps() >= 5, "the fifth step")
    # To launcher and ranks at once, as a terminal or a scheduler does.
    os.killpg(broken.launcher, signal.SIGTERM)
    assert broken.wait() != 0
    assert "saved " in broken.output
    said = r"stopped by SIGTERM at step \d+, which is saved; continue with --resume"
    assert re.search(said, broken.output), broken.output
    assert not (root / "portable").exists()
    resumed = rig.start(root, *settings, options=["--resume"]).finished()
    assert "resumed at step " in resumed.output
    same_losses(resumed, whole, 1, STEPS)
    same_end(resumed, whole, STEPS)
