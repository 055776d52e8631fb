"""A manifest that is not as it was written makes a damaged checkpoint, never a crash."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from svilm_fast.core.errors import CheckpointError
from svilm_fast.train.checkpoint import store as module
from svilm_fast.train.checkpoint.store import (
    TrainerState,
    load_checkpoint,
    newest_verified,
    problem_with,
    save_checkpoint,
    tag_of,
)
from svilm_fast.train.folder.manifest import (
    MANIFEST,
    committed_tags,
    remove_listed,
    write_manifest,
)


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
    assert f"{tag_of(2)} is skipped: " in caplog.text
    assert f"{MANIFEST} " in caplog.text.partition(" is skipped: ")[2]


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


def mutated(value, source: random.Random):
    """Return JSON in which one value, somewhere, is another one."""
    others = [
        None,
        True,
        -1,
        10**30,
        1e308,
        "",
        "../x",
        "\ud800",
        "a" * 5000,
        [],
        [[]],
        {},
        {"": 1},
    ]
    if isinstance(value, dict) and value and source.random() < 0.85:
        key = source.choice(sorted(value))
        if source.random() < 0.1:
            return {name: kept for name, kept in value.items() if name != key}
        return value | {key: mutated(value[key], source)}
    if isinstance(value, list) and value and source.random() < 0.8:
        place = source.randrange(len(value))
        return [*value[:place], mutated(value[place], source), *value[place + 1 :]]
    return source.choice([other for other in others if other != value])


@pytest.mark.parametrize("name", [MANIFEST, "trainer_state.json"])
def test_random_json_is_a_good_or_a_damaged_checkpoint_and_nothing_else(
    make_engine, tmp_path: Path, monkeypatch, name: str
) -> None:
    folder = save(make_engine("deepspeed.zero_stage=1", "ema.decay=0.9"), tmp_path, 1)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    content = json.loads((folder / name).read_text())
    source, found = random.Random(1), 0
    for _ in range(400):
        (folder / name).write_text(json.dumps(mutated(content, source)))
        if name != MANIFEST:
            write_manifest(folder)  # as somebody who wants it to be read would
        reason = problem_with(folder)
        found += reason is not None
        assert reason is None or 0 < len(reason) < 6000
        if reason is None:
            assert newest_verified(tmp_path) == tag_of(1)
            continue
        with pytest.raises(CheckpointError, match="passes verification"):
            newest_verified(tmp_path)
    if name == MANIFEST:
        assert found > 380
    else:
        assert found > 200


@pytest.mark.parametrize(
    "change",
    [
        {"world_size": 10**9},
        {"world_size": True},
        {"zero_stage": "1"},
        {"zero_stage": 4},
        {"ema": []},
        {"groups": [{"name": "decay"}]},
        {"parameters": {"body.0.weight": [[8], 4]}},
        {"step": None},
        {"copies": ["../config.yaml"]},
        {"copies": ["config.yaml"]},
    ],
)
def test_a_state_of_other_types_is_damage(make_engine, tmp_path: Path, change: dict) -> None:
    folder = save(make_engine(), tmp_path, 1)
    path = folder / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    write_manifest(folder)
    reason = str(problem_with(folder))
    assert reason.startswith(
        ("trainer_state.json is damaged (", f"{MANIFEST} does not list config")
    )


def test_files_beside_those_that_are_listed_do_no_harm(make_engine, tmp_path: Path) -> None:
    folder = save(make_engine(), tmp_path, 1)
    (folder / "notes.txt").write_text("mine")
    assert problem_with(folder) is None


def test_copies_are_required(make_engine, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    state = TrainerState(1, {})
    folder = save_checkpoint(make_engine(), tmp_path, state, keep=1, copies=[tokenizer])
    assert problem_with(folder) is None
    (folder / tokenizer.name).unlink()
    write_manifest(folder)
    assert problem_with(folder) == f"{MANIFEST} does not list {tokenizer.name}"


def test_a_damaged_newer_checkpoint_takes_no_place_of_a_good_one(
    make_engine, tmp_path: Path
) -> None:
    engine = make_engine()
    save(engine, tmp_path, 1)
    newest = save(engine, tmp_path, 9)
    (newest / MANIFEST).write_text("{}")
    save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    assert newest_verified(tmp_path) == tag_of(2)
    assert not (tmp_path / tag_of(1)).exists()
    save_checkpoint(engine, tmp_path, TrainerState(9, {}), keep=1)
    assert committed_tags(tmp_path) == [newest_verified(tmp_path)] == [tag_of(9)]


def test_a_folder_that_cannot_be_read_is_no_fresh_start(
    make_engine, tmp_path: Path, monkeypatch
) -> None:
    folder = save(make_engine(), tmp_path, 1)
    (tmp_path / "latest").unlink()

    listdir = os.listdir

    def refuse(path: Path) -> list[str]:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(CheckpointError, match=rf"{folder} cannot be read \(Permission denied\)"):
        newest_verified(tmp_path)
    assert problem_with(folder) == f"it cannot be read (Permission denied: {folder})"


def test_removing_a_checkpoint_follows_no_link(tmp_path: Path) -> None:
    folder, others = tmp_path / "step", tmp_path / "others"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a").write_bytes(b"a")
    write_manifest(folder)
    (folder / "inner").rename(others)
    (folder / "inner").symlink_to(others)
    remove_listed(folder)
    assert (others / "a").read_bytes() == b"a"


@pytest.mark.parametrize("missing", ["mp_rank_00_model_states.pt", "data_rank_00000.json", "optim"])
def test_the_files_of_a_checkpoint_are_required(make_engine, tmp_path: Path, missing: str) -> None:
    folder = save(make_engine("deepspeed.zero_stage=1"), tmp_path, 1)
    for path in folder.glob(f"*{missing}*"):
        path.unlink()
    write_manifest(folder)
    assert missing in str(problem_with(folder))
    assert "does not list" in str(problem_with(folder))


def test_files_reach_the_disk_before_the_manifest(make_engine, tmp_path: Path, monkeypatch) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    folder = save(make_engine("ema.decay=0.9"), tmp_path, 1)
    commit = next(place for place, name in enumerate(flushed) if name.startswith(f".{MANIFEST}"))
    assert {path.name for path in folder.iterdir()} - {MANIFEST} <= set(flushed[:commit])


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
    assert "incomplete first checkpoint" in caplog.text
    save(engine, tmp_path, 1)
    assert newest_verified(tmp_path) == tag_of(1)
    (tmp_path / tag_of(1) / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint .* passes verification"):
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
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert folder / "ema_rank_00000.safetensors" in paths
    modes = {path.name: path.stat().st_mode & 0o777 for path in paths}
    assert set(modes.values()) == {0o640}, modes


def test_a_link_in_a_checkpoints_place_is_neither_emptied_nor_replaced(
    make_engine, tmp_path: Path, caplog
) -> None:
    engine = make_engine()
    archive = tmp_path / "archive"
    save(engine, tmp_path, 1).rename(archive)
    before = {path.name for path in archive.iterdir()}
    (tmp_path / tag_of(1)).symlink_to(archive)
    save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    assert "it is a symbolic link, which no run creates" in caplog.text
    with pytest.raises(
        CheckpointError, match=f"{tag_of(1)} cannot be replaced: it is a symbolic link"
    ):
        save(engine, tmp_path, 1)
    assert {path.name for path in archive.iterdir()} == before


def test_a_damaged_checkpoint_is_removed_but_not_what_somebody_put_there(
    make_engine, tmp_path: Path, caplog
) -> None:
    engine = make_engine()
    folder = save(engine, tmp_path, 1)
    (folder / MANIFEST).write_text("{")
    (folder / "notes.txt").write_text("mine")
    save_checkpoint(engine, tmp_path, TrainerState(2, {}), keep=1)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert "contains notes.txt, which no checkpoint save wrote" in caplog.text
    with pytest.raises(
        CheckpointError, match=f"{tag_of(1)} contains files that no checkpoint save wrote"
    ):
        save(engine, tmp_path, 1)


def test_files_that_a_killed_save_left_are_replaced(make_engine, tmp_path: Path) -> None:
    engine, folder = make_engine(), tmp_path / tag_of(1)
    folder.mkdir()
    for name in (".tmpX7bcDj", "random_rank_00000.safetensors", ".trainer_state.json.4711.tmp"):
        (folder / name).write_bytes(b"half")
    save(engine, tmp_path, 1)
    assert problem_with(folder) is None
    assert not list(folder.glob(".*"))
