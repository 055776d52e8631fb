"""A manifest that is not as it was written makes a damaged checkpoint, never a crash."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from svilm_fast.train import checkpoint as module
from svilm_fast.train.checkpoint import (
    TrainerState,
    load_checkpoint,
    newest_verified,
    problem_with,
    save_checkpoint,
    tag_of,
)
from svilm_fast.train.errors import CheckpointError
from svilm_fast.train.manifest import MANIFEST, committed_tags, remove_listed, write_manifest


def save(engine, folder: Path, step: int) -> Path:
    return save_checkpoint(engine, folder, TrainerState(step, {"position": 0}), keep=9)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


GOOD = {"bytes": 1, "sha256": "0" * 64}
MALFORMED = {
    "empty": "",
    "null": "null",
    "a list": "[1]",
    "a number": "7",
    "nested": nested(100_000),
    "no files": json.dumps({"format": 1}),
    "files are a list": json.dumps({"format": 1, "files": ["a"]}),
    "no file at all": json.dumps({"format": 1, "files": {}}),
    "another format": json.dumps({"format": 2, "files": {"a": GOOD}}),
    "entry is null": json.dumps({"format": 1, "files": {"a": None}}),
    "bytes are text": json.dumps({"format": 1, "files": {"a": GOOD | {"bytes": "1"}}}),
    "no hash": json.dumps({"format": 1, "files": {"a": {"bytes": 1}}}),
    "long name": json.dumps({"format": 1, "files": {"a" * 5000: GOOD}}),
    "zero byte": json.dumps({"format": 1, "files": {"a\0b": GOOD}}),
    "absolute": json.dumps({"format": 1, "files": {"/etc/passwd": GOOD}}),
    "outside": json.dumps({"format": 1, "files": {"../../x": GOOD}}),
    "not UTF-8": b"\xff\xfe{",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_manifest_falls_back_to_the_checkpoint_before(
    make_engine, tmp_path: Path, kind: str, caplog
) -> None:
    engine = make_engine()
    save(engine, tmp_path, 1)
    newer = save(engine, tmp_path, 2)
    text = MALFORMED[kind]
    (newer / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert newest_verified(tmp_path) == tag_of(1)
    assert f"{tag_of(2)} is passed over: {MANIFEST} " in caplog.text


def test_every_flipped_bit_of_a_manifest_is_survived(make_engine, tmp_path: Path) -> None:
    folder = save(make_engine(), tmp_path, 1)
    content = (folder / MANIFEST).read_bytes()
    source = random.Random(0)
    found = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[source.randrange(len(content))] ^= 1 << source.randrange(8)
        (folder / MANIFEST).write_bytes(bytes(damaged))
        found += problem_with(folder) is not None
    # The rest changed white space.
    assert found > 300


@pytest.mark.parametrize("missing", ["mp_rank_00_model_states.pt", "data_rank_00000.json", "optim"])
def test_the_files_of_a_checkpoint_are_required(make_engine, tmp_path: Path, missing: str) -> None:
    folder = save(make_engine("deepspeed.zero_stage=1"), tmp_path, 1)
    for path in folder.glob(f"*{missing}*"):
        path.unlink()
    write_manifest(folder)
    assert missing in str(problem_with(folder))
    assert "does not list" in str(problem_with(folder))


def test_a_kill_during_the_first_save_leaves_nothing_to_resume(
    make_engine, tmp_path: Path, monkeypatch, caplog
) -> None:
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    engine = make_engine()
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            save(engine, tmp_path, 1)
    assert load_checkpoint(engine, tmp_path) is None
    assert "unfinished first save" in caplog.text
    save(engine, tmp_path, 1)
    assert newest_verified(tmp_path) == tag_of(1)
    (tmp_path / tag_of(1) / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint .* can be trusted"):
        newest_verified(tmp_path)


def test_only_our_own_names_are_checkpoints(make_engine, tmp_path: Path) -> None:
    engine = make_engine()
    for name in ("backup", "step_00000001_good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text("{}")
    for step in (1, 2, 3):
        save_checkpoint(engine, tmp_path, TrainerState(step, {}), keep=1)
    assert committed_tags(tmp_path) == [tag_of(3)]
    assert (tmp_path / "backup" / MANIFEST).exists()
    assert (tmp_path / "step_00000001_good" / MANIFEST).exists()


def test_removing_a_checkpoint_keeps_what_somebody_added(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a").write_bytes(b"a")
    write_manifest(folder)
    (folder / "notes.txt").write_text("mine")
    remove_listed(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_latest_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "latest").write_bytes(b"\xff\x00" * 500)
    with pytest.raises(CheckpointError, match="latest names "):
        newest_verified(tmp_path)


def test_files_follow_the_umask(make_engine, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save(make_engine("ema.decay=0.9"), tmp_path, 1)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o640}, modes
