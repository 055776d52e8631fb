"""A full disk costs the checkpoint that was being written, and is told in bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from svilm_fast.core.errors import CheckpointError
from svilm_fast.train.checkpoint import portable_files as portable
from svilm_fast.train.checkpoint import store as module
from svilm_fast.train.checkpoint.portable import save_portable
from svilm_fast.train.checkpoint.portable_files import problem_with
from svilm_fast.train.checkpoint.store import TrainerState, newest_verified, save_checkpoint, tag_of
from svilm_fast.train.config.run_files import RunFiles
from svilm_fast.train.folder.disk import RESERVE_BYTES, DiskFullError
from svilm_fast.train.folder.manifest import committed_tags
from svilm_fast.train.run.metrics_log import MetricsLog
from svilm_fast.train.run.session import Start, train_as_rank

Usage = namedtuple("Usage", "total used free")
BALLAST = "ballast"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, a little larger than the reserve."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={RESERVE_BYTES + (4 << 20)}"
    command = ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    # Lazily: a caught exception may still hold a file open.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left: int) -> None:
    """Fill a file system but for `left` bytes."""
    with (disk / BALLAST).open("wb") as ballast:
        ballast.write(bytes(max(shutil.disk_usage(disk).free - left, 0)))


def free_in_checkpoints(free: Iterator[int]) -> Callable[[Path], Usage]:
    """`shutil.disk_usage` that takes the free bytes of the checkpoints' folder from `free`."""
    real = shutil.disk_usage
    return lambda path: Usage(1, 1, next(free)) if "checkpoints" in str(path) else real(path)


def test_too_little_room_is_told_before_anything_is_written(
    make_engine, tmp_path: Path, monkeypatch
) -> None:
    engine = make_engine()
    save_checkpoint(engine, tmp_path, TrainerState(1, {}), keep=1)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 1000))
    with pytest.raises(DiskFullError, match=r"of step 2: .* [\d,]+ bytes, 1,000 are free"):
        save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_during_the_save_leaves_the_previous_checkpoint(
    make_engine, tmp_path: Path, monkeypatch
) -> None:
    engine = make_engine()
    save_checkpoint(engine, tmp_path, TrainerState(1, {}), keep=1)

    def fill_up(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_random_state", fill_up)
    with pytest.raises(DiskFullError, match="earlier checkpoints are intact"):
        save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    assert not (tmp_path / tag_of(2)).exists()
    assert newest_verified(tmp_path) == tag_of(1)


def test_a_run_may_go_without_a_checkpoint(configure, ranks, monkeypatch, capsys) -> None:
    short = ("training.steps=3", "evaluation.at_end=false", "checkpoint.every_steps=1")
    free = iter([10**12, 0, 10**12, 10**12, 10**12])
    monkeypatch.setattr(shutil, "disk_usage", free_in_checkpoints(free))
    config = configure(*short, "checkpoint.when_full=continue")
    assert train_as_rank(config, Start(), ranks).finished
    assert committed_tags(RunFiles(Path(config.run.dir)).checkpoints) == [tag_of(3), tag_of(1)]
    assert (
        "not saved: not enough disk space for the checkpoint of step 2" in capsys.readouterr().out
    )


def test_a_run_does_not_leave_without_a_word_that_its_last_step_is_not_saved(
    configure, ranks, monkeypatch
) -> None:
    short = ("training.steps=3", "training.stop_after_steps=2", "checkpoint.every_steps=1")
    free = iter([10**12, 0, 0])
    monkeypatch.setattr(shutil, "disk_usage", free_in_checkpoints(free))
    config = configure(*short, "checkpoint.when_full=continue")
    with pytest.raises(DiskFullError, match="not enough disk space for the checkpoint of step 2"):
        train_as_rank(config, Start(), ranks)
    assert committed_tags(RunFiles(Path(config.run.dir)).checkpoints) == [tag_of(1)]


@pytest.mark.parametrize("settings", [("deepspeed.zero_stage=0",), ("ema.decay=0.9",)])
def test_a_full_disk_at_any_place_of_a_save_costs_that_save_alone(
    make_engine, batch_of, small_disk: Path, monkeypatch, settings: tuple[str, ...]
) -> None:
    engine = make_engine(*settings)
    engine.step(batch_of(0), 0.02)
    engine.ema and engine.ema.update(1)
    place = small_disk / "checkpoints"
    size = sum(
        -(-path.stat().st_size // 4096) * 4096
        for path in save_checkpoint(engine, place, TrainerState(1, {}), keep=1).iterdir()
    )
    check_space = module.check_space
    for left in range(0, size - 3 * 4096, 8192):  # a file of the next save may be a page smaller

        def check_then_fill(*arguments, left=left) -> None:
            check_space(*arguments)
            fill(small_disk, left)

        with monkeypatch.context() as patched:
            patched.setattr(module, "check_space", check_then_fill)
            with pytest.raises(DiskFullError, match=r"needs about [\d,]+ bytes, [\d,]+ are free"):
                save_checkpoint(engine, place, TrainerState(2, {}), keep=1)
        assert not (place / tag_of(2)).exists(), left
        assert newest_verified(place) == tag_of(1), left
        (small_disk / BALLAST).unlink()
    save_checkpoint(engine, place, TrainerState(2, {}), keep=1)
    assert newest_verified(place) == tag_of(2)


def test_what_torch_cannot_write_is_told_and_removed(
    make_engine, tmp_path: Path, monkeypatch
) -> None:
    engine = make_engine("deepspeed.zero_stage=1")
    save_checkpoint(engine, tmp_path, TrainerState(1, {}), keep=1)

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fail)
        with pytest.raises(CheckpointError, match=r"step 2 .* could not be written: PytorchStream"):
            save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    assert not (tmp_path / tag_of(2)).exists()
    assert newest_verified(tmp_path) == tag_of(1)
    save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    assert newest_verified(tmp_path) == tag_of(2)


@pytest.mark.parametrize("settings", [("training.precision=bf16",), ("ema.decay=0.9",), ()])
def test_the_first_checkpoint_is_estimated_closely(
    make_engine, batch_of, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    engine = make_engine(*settings, width=4096)
    bf16 = "training.precision=bf16" in settings
    engine.step({k: v.bfloat16() if bf16 else v for k, v in batch_of(0).items()}, 0.02)
    engine.ema and engine.ema.update(1)
    estimate = module.expected_bytes(engine, tmp_path)
    save_checkpoint(engine, tmp_path, TrainerState(1, {}), keep=1)
    size = module.expected_bytes(engine, tmp_path)
    assert 0.85 * size < estimate < 1.05 * size


def test_a_portable_checkpoint_that_does_not_fit_leaves_the_one_before(
    make_engine, tmp_path: Path, monkeypatch
) -> None:
    engine, folder = make_engine(), tmp_path / "portable"
    save_portable(engine, folder, 1, {})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fill_up(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(portable, "write_manifest", fill_up)
        with pytest.raises(DiskFullError, match=r"portable checkpoint .* bytes, [\d,]+ are free"):
            save_portable(engine, folder, 2, {})
        patched.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 1000))
        with pytest.raises(DiskFullError, match="1,000 are free"):
            save_portable(engine, folder, 2, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert problem_with(folder) is None
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_costs_no_training_for_a_log(configure, small_disk: Path, caplog) -> None:
    files = RunFiles(small_disk / "run")
    files.root.mkdir()
    metrics = MetricsLog(configure(), files, first=True, start_step=0)
    fill(small_disk, 0)
    for step in range(1, 200):
        metrics.write(step, {"loss": 1.0})
    assert caplog.text.count("metrics cannot be written; the run continues without them") == 1
    (small_disk / BALLAST).unlink()
    metrics.write(200, {"loss": 1.0})
    metrics.close()
    steps = [json.loads(line)["step"] for line in files.metrics.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[:10] == list(range(1, 11))
    assert steps[-1] == 200
