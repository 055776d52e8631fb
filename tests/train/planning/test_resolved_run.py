"""A run whose recipe says `auto`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from svilm_fast.train.plan.chooser import DoesNotFitError
from svilm_fast.train.run.session import Start, train_as_rank

AUTO = (
    "deepspeed.zero_stage=auto",
    "training.micro_batch=auto",
    "video.checkpoint_activations=auto",
    "evaluation.at_end=false",
    "checkpoint.portable_at_end=false",
)


def test_a_run_settles_auto_says_why_and_goes_on_with_it(configure, ranks, capsys) -> None:
    config = configure(
        *AUTO, "training.memory_bytes=8000000000", "training.steps=2", "training.stop_after_steps=1"
    )
    train_as_rank(config, Start(), ranks)
    shown = capsys.readouterr().out
    assert "plan for 7.45 GiB per rank" in shown
    assert "chosen: zero_stage=1 micro_batch=null" in shown
    written = yaml.safe_load((Path(config.run.dir) / "config.yaml").read_text())
    assert written["deepspeed"]["zero_stage"] == 1
    assert written["training"]["micro_batch"] is None
    assert written["video"]["checkpoint_activations"] is False
    longer = configure(*AUTO, "training.memory_bytes=8000000000", "training.steps=2")
    assert train_as_rank(longer, Start(resume=True), ranks).step == 2
    assert "kept from" in capsys.readouterr().out


def test_a_run_that_cannot_fit_does_not_start(configure, ranks) -> None:
    config = configure(*AUTO, "training.memory_bytes=480000000")
    with pytest.raises(DoesNotFitError, match=r"does not fit 0\.45 GiB per rank"):
        train_as_rank(config, Start(), ranks)
    assert not Path(config.run.dir).exists()
