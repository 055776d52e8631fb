"""A run removes and overwrites only what a run wrote, and two runs never share a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from svilm_fast.train import run_folder
from svilm_fast.train.errors import UserError
from svilm_fast.train.files import RunFiles
from svilm_fast.train.folder_lock import LOCK_FILE, FolderLock
from svilm_fast.train.load_config import load_config
from svilm_fast.train.session import Start, train_as_rank

FOREIGN = {
    "checkpoints/thesis.docx": b"years of work",
    "evaluation/results.xlsx": b"figures",
    "profile/me.json": b"{}",
    "tensorboard/notes.txt": b"mine",
    "report.html": b"<p>mine</p>",
    "config.yaml": b"of: another program",
}


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "start", [Start(), Start(overwrite=True), Start(auto_resume=True)], ids=["new", "over", "auto"]
)
def test_a_foreign_folder_is_refused_and_stays_as_it_was(configure, ranks, start) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    folder = Path(config.run.dir)
    fill(folder, FOREIGN)
    with pytest.raises(UserError, match=r"is not empty and not a run \(checkpoints, config.yaml"):
        train_as_rank(config, start, ranks)
    assert contents(folder) == FOREIGN


def test_a_refused_start_leaves_no_folder_behind(configure, ranks, tmp_path: Path) -> None:
    config = configure("data.train=absent", run="new/deep/run")
    with pytest.raises(ValueError, match="absent"):
        train_as_rank(config, Start(), ranks)
    assert not (tmp_path / "new").exists()


def test_overwrite_removes_only_what_the_manifest_lists(tmp_path: Path, caplog) -> None:
    files = RunFiles(tmp_path / "run")
    own = {
        "config.yaml": b"",
        "metrics.jsonl": b"",
        "checkpoints/latest": b"step_00000001",
        "checkpoints/step_00000001/weights": b"",
        "tensorboard/events.out.tfevents.1": b"",
        "evaluation/retrieval.json": b"",
        "evaluation/retrieval_pictures/best.png": b"",
        "pictures/loss.png": b"",
    }
    mine = {
        "notes.txt": b"mine",
        "checkpoints/backup/manifest.json": b"{}",
        "evaluation/compared.ods": b"mine",
        "tensorboard/read.me": b"mine",
    }
    fill(files.root, own | mine)
    run_folder.claim(files)
    run_folder.clear(files)
    assert {k: v for k, v in contents(files.root).items() if k != "run.json"} == mine
    assert not (files.root / "pictures").exists()
    assert "keeps what the earlier run did not write: checkpoints, evaluation" in caplog.text


def test_a_manifest_cannot_widen_what_is_removed(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    fill(tmp_path, {"outside.txt": b"mine", "run/inside.txt": b"mine", "run/config.yaml": b""})
    widened = {"format": run_folder.FORMAT, "writes": ["../*", "/*", "*", "config.yaml"]}
    files.manifest.write_text(json.dumps(widened))
    run_folder.clear(files)
    assert sorted(contents(tmp_path)) == ["outside.txt", "run/inside.txt", "run/run.json"]


def test_what_lies_behind_a_link_stays(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    fill(tmp_path, {"disk/step_00000001/weights": b"", "disk/report.html": b"", "run/a": b""})
    files.checkpoints.symlink_to(tmp_path / "disk")
    files.report.symlink_to(tmp_path / "disk" / "report.html")
    run_folder.claim(files)
    run_folder.clear(files)
    assert (tmp_path / "disk/step_00000001/weights").exists()
    assert files.report.is_symlink()
    (tmp_path / "disk/step_00000001/manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is a link, and --overwrite removes nothing behind"):
        run_folder.check_free(files, overwrite=True)


def test_an_older_run_is_told_what_to_do(tmp_path: Path) -> None:
    fill(tmp_path, {"config.yaml": b"", "ds_config.json": b"{}", "checkpoints/latest": b""})
    with pytest.raises(UserError, match=r"older version, without run.json: .*--resume"):
        run_folder.check_free(RunFiles(tmp_path), overwrite=True)


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_run_dir_is_an_error(value: str) -> None:
    with pytest.raises(UserError, match=r"run\.dir: needs the path of a folder"):
        load_config(None, [f"run.dir={value}"])


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(
        None, ["run.dir=~/x", "data.train=[~/a, '~/b']", "data.videos=~/v", "data.val=~/c.csv"]
    )
    assert config.run.dir == f"{tmp_path}/x"
    assert config.data.train == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert (config.data.videos, config.data.val) == (f"{tmp_path}/v", f"{tmp_path}/c.csv")


def test_a_second_run_in_the_folder_is_refused_and_names_the_first(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run")
    lock.acquire()
    lock.keep()
    with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on \S+ since 20"):
        FolderLock(tmp_path / "run").acquire()
    lock.release()
    other = FolderLock(tmp_path / "run")
    other.acquire()
    other.release()
    assert (tmp_path / "run" / LOCK_FILE).read_bytes() == b""


def test_a_crash_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from svilm_fast.train.folder_lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); lock.acquire(); lock.keep()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    assert subprocess.run(command, check=False).returncode == -9
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] > 0
    lock = FolderLock(tmp_path / "run")
    lock.acquire()
    lock.release()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.dir=.*cannot be created \(Not a directory"):
        FolderLock(tmp_path / "file" / "run").acquire()
    with pytest.raises(UserError, match=r"is a file; choose another run\.dir"):
        FolderLock(tmp_path / "file").acquire()


def test_the_last_evaluation_can_fail_and_nothing_is_lost(
    configure, ranks, monkeypatch, capsys
) -> None:
    from svilm_fast.train import session

    def broken(*args: object, **options: object) -> None:
        raise ValueError("data.val: no clip could be decoded")

    config = configure("training.steps=2", "evaluation.every_steps=1")
    root = Path(config.run.dir)
    monkeypatch.setattr(session, "evaluate", broken)
    with pytest.raises(ValueError, match="no clip could be decoded"):
        train_as_rank(config, Start(), ranks)
    assert (root / "checkpoints" / "step_00000001" / "manifest.json").is_file()
    config = configure("training.steps=2", "evaluation.every_steps=0")
    with pytest.raises(ValueError, match="no clip could be decoded"):
        train_as_rank(config, Start(resume=True), ranks)
    assert (root / "checkpoints" / "step_00000002" / "manifest.json").is_file()
    assert (root / "portable" / "manifest.json").is_file()
    assert "complete and saved (step 2)" in capsys.readouterr().out
    monkeypatch.undo()
    assert train_as_rank(config, Start(resume=True), ranks).finished
    assert '"retrieval_t2v_R@1"' in (root / "metrics.jsonl").read_text()


def test_a_split_smaller_than_the_ranks_is_refused(configure, ranks, tmp_path: Path) -> None:
    from dataclasses import replace

    from svilm_fast.train.session import _held_out_data

    config = configure("evaluation.max_clips=1")
    with pytest.raises(UserError, match="has 1 clips to evaluate on 2 ranks"):
        _held_out_data(config, _tokenizer(config), replace(ranks, world_size=2))


def _tokenizer(config):
    from svilm_fast.data.dataset import prepare_tokenizer
    from svilm_fast.data.samples import open_split

    return prepare_tokenizer(config.data, open_split(config.data, "train"))
