"""Hooks are called at every place of a run, in order, and only while they are installed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from svilm_fast.train.checkpoint.store import committed_tags, tag_of
from svilm_fast.train.engine.engine import Engine, StepResult
from svilm_fast.train.folder.disk import DiskFullError
from svilm_fast.train.run.hooks import Hook, installed, installed_hooks


class Diary(Hook):
    """Writes down every place with what holds there."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def parameters(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.engine.model.parameters()])

    def before_run(self, engine: Engine) -> None:
        self.engine = engine
        self.lines.append(("run",))

    def before_step(self, step: int, batch: Any) -> None:
        self.before = self.parameters()
        self.lines.append(("step", step, batch.ids[0]))

    def after_backward(self, step: int) -> None:
        gradients = [p.grad for p in self.engine.model.parameters()]
        assert any(bool(gradient.any()) for gradient in gradients)
        assert torch.equal(self.before, self.parameters())
        self.lines.append(("backward", step))

    def after_step(self, step: int, result: StepResult) -> None:
        assert torch.equal(self.before, self.parameters()) == (not result.applied)
        self.lines.append(("stepped", step, result.applied))

    def before_save(self, step: int, folder: Path) -> None:
        assert not folder.exists()
        self.lines.append(("save", step))

    def during_save(self, step: int, folder: Path) -> None:
        assert {path.suffix for path in folder.iterdir()} == {".pt"}
        self.lines.append(("saving", step))

    def after_save(self, step: int, folder: Path) -> None:
        assert committed_tags(folder.parent)[0] == folder.name
        self.lines.append(("saved", step))

    def after_run(self) -> None:
        self.lines.append(("end",))


def test_every_place_is_reached_in_order(make_loop) -> None:
    diary = Diary()
    overrides = ("training.max_non_finite_steps=2", "checkpoint.every_steps=1")
    loop = make_loop("deepspeed.zero_stage=0", *overrides, poisoned=(1,), steps=2, hooks=(diary,))
    loop.run()
    assert diary.lines == [
        ("run",),
        *(("step", 1, "clip-0-0"), ("backward", 1), ("stepped", 1, True)),
        *(("save", 1), ("saving", 1), ("saved", 1)),
        *(("step", 2, "clip-1-0"), ("stepped", 2, False)),
        *(("save", 2), ("saving", 2), ("saved", 2)),
        ("end",),
    ]


def test_an_os_error_during_a_save_is_a_failed_write(make_loop, tmp_path: Path) -> None:
    class Full(Hook):
        def during_save(self, step: int, folder: Path) -> None:
            if step == 2:
                raise OSError(errno.ENOSPC, "no space")

    loop = make_loop("checkpoint.every_steps=1", steps=2, hooks=(Full(),))
    with pytest.raises(DiskFullError, match="the checkpoint of step 2"):
        loop.run()
    assert committed_tags(tmp_path / "checkpoints") == [tag_of(1)]


def test_hooks_are_installed_for_a_block_even_if_it_fails() -> None:
    outer, inner = Hook(), Hook()

    def fail() -> None:
        with installed(inner):
            assert installed_hooks() == (outer, inner)
            raise KeyError

    with installed(outer):
        with pytest.raises(KeyError):
            fail()
        assert installed_hooks() == (outer,)
    assert installed_hooks() == ()
