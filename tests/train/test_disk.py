"""A full disk costs the checkpoint that was being written, and is told in bytes."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from svilm_fast.train import checkpoint as module
from svilm_fast.train.checkpoint import TrainerState, newest_verified, save_checkpoint, tag_of
from svilm_fast.train.disk import DiskFullError, NoRoomError
from svilm_fast.train.files import RunFiles
from svilm_fast.train.manifest import committed_tags
from svilm_fast.train.session import Start, train_as_rank

Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_told_before_anything_is_written(
    make_engine, tmp_path: Path, monkeypatch
) -> None:
    engine = make_engine()
    save_checkpoint(engine, tmp_path, TrainerState(1, {}), keep=1)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 1000))
    with pytest.raises(NoRoomError, match=r"checkpoint of step 2: .* [\d,]+ bytes, 1,000 are free"):
        save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_during_the_save_leaves_the_previous_checkpoint(
    make_engine, tmp_path: Path, monkeypatch
) -> None:
    engine = make_engine()
    save_checkpoint(engine, tmp_path, TrainerState(1, {}), keep=1)

    def fill_up(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_tensors", fill_up)
    with pytest.raises(DiskFullError, match="earlier checkpoints are intact"):
        save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    assert not (tmp_path / tag_of(2)).exists()
    assert newest_verified(tmp_path) == tag_of(1)


def test_a_run_may_go_without_a_checkpoint(configure, ranks, monkeypatch, capsys) -> None:
    short = ("training.steps=3", "evaluation.at_end=false", "checkpoint.every_steps=1")
    free = iter([10**12, 0, 10**12, 10**12, 10**12])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, next(free)))
    config = configure(*short, "checkpoint.when_full=continue")
    assert train_as_rank(config, Start(), ranks).finished
    assert committed_tags(RunFiles(Path(config.run.dir)).checkpoints) == [tag_of(3), tag_of(1)]
    assert "not saved: no room for the checkpoint of step 2" in capsys.readouterr().out
