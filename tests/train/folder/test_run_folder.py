"""A run removes and overwrites only what a run wrote, and two runs never share a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svilm_fast.core.errors import EvaluationError, UserError
from svilm_fast.train.config.load import load_config
from svilm_fast.train.config.run_files import LOCK_FILE, RunFiles
from svilm_fast.train.folder import ownership
from svilm_fast.train.folder import prepare as run_folder
from svilm_fast.train.folder.files import LONGEST_JSON, read_json
from svilm_fast.train.folder.lock import FolderLock
from svilm_fast.train.run.session import Start, train_as_rank
from svilm_fast.train.run_app import exit_code_of

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
    with pytest.raises(UserError, match=r"not empty and is not a run \(checkpoints, config.yaml"):
        train_as_rank(config, start, ranks)
    assert contents(folder) == FOREIGN


def test_a_refused_start_leaves_no_folder_behind(configure, ranks, tmp_path: Path) -> None:
    config = configure("data.train=absent", run="new/deep/run")
    with pytest.raises(ValueError, match="absent"):
        train_as_rank(config, Start(), ranks)
    assert not (tmp_path / "new").exists()


def owned_by_a_run(files: RunFiles, *names: str, saves: tuple[str, ...] = ()) -> None:
    ownership.mark(files, created="2026-01-01")
    ownership.claim(files, *(files.root / n for n in names), saves=[files.root / n for n in saves])


def test_overwrite_removes_only_what_the_run_itself_wrote(configure, ranks, caplog) -> None:
    config = configure("training.steps=1", "evaluation.every_steps=1", "logging.tensorboard=true")
    files = RunFiles(Path(config.run.dir))
    train_as_rank(config, Start(), ranks)
    assert ownership.foreign(files) == []
    mine = {
        "notes.txt": b"mine",
        "checkpoints/backup/manifest.json": b"{}",
        "evaluation/compared.json": b"{}",
        "evaluation/compared_pictures/one.png": b"mine",
        "pictures/cat.png": b"mine",
        "tensorboard/events.out.tfevents.of.another.run": b"mine",
    }
    fill(files.root, mine)
    old = set(files.tensorboard.iterdir())
    train_as_rank(config, Start(overwrite=True), ranks)
    assert contents(files.root).items() >= mine.items()
    assert [path.relative_to(files.root).as_posix() for path in ownership.foreign(files)] == sorted(
        mine
    )
    assert len(set(files.tensorboard.iterdir()) & old) == 1
    assert "did not write: checkpoints/backup/manifest.json, evaluation/compared" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/step_00000500/manifest.json",
        "portable/notes.txt",
        "report.html",
        "tracking.json",
    ],
)
def test_overwrite_refuses_a_foreign_file_where_the_run_would_write(tmp_path: Path, name) -> None:
    files = RunFiles(tmp_path / "run")
    fill(files.root, {"config.yaml": b"", name: b"mine"})
    owned_by_a_run(files, "config.yaml")
    with pytest.raises(UserError, match=rf"that its run did not write: {name}; move them away"):
        run_folder.check_free(files, overwrite=True)


def test_a_resume_that_starts_from_scratch_overwrites_nothing_foreign(configure, ranks) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    files = RunFiles(Path(config.run.dir))
    fill(files.root, {"metrics.jsonl": b"mine"})
    owned_by_a_run(files, "config.yaml")
    before = contents(files.root)
    with pytest.raises(UserError, match=r"did not write: metrics\.jsonl; move them away"):
        train_as_rank(config, Start(auto_resume=True), ranks)
    assert contents(files.root) == before


def test_a_save_that_was_killed_is_removed_and_what_lies_beside_it_is_not(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    unfinished = {
        f"checkpoints/step_00000004/{name}": b"half"
        for name in (
            "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
            "mp_rank_00_model_states.pt",
            "random_rank_00001.safetensors",
            "trainer_state.json",
            ".trainer_state.json.4711.tmp",
            ".tmpX7bcDj",
        )
    }
    mine = {"checkpoints/step_00000004/why_it_died.txt": b"mine"}
    fill(files.root, unfinished | mine)
    owned_by_a_run(files, saves=("checkpoints/step_00000004",))
    run_folder.clear(files)
    assert contents(files.root).keys() == mine.keys() | {"run.json"}


def test_a_list_cannot_reach_out_of_the_folder(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    fill(tmp_path, {"outside.txt": b"mine", "run/inside.txt": b"mine", "run/config.yaml": b""})
    owned_by_a_run(files, "config.yaml")
    with files.owned.open("ab") as file:
        for name in ("../outside.txt", f"{tmp_path}/outside.txt", "a/../../outside.txt", "../"):
            file.write(json.dumps(name).encode() + b"\n")
        file.write(b'\xff\xfe\n{"a": 1}\n"inside.t')
    run_folder.clear(files)
    assert sorted(contents(tmp_path)) == ["outside.txt", "run/inside.txt", "run/run.json"]
    files.owned.write_bytes(b'"half a li')
    ownership.claim(files, files.config)
    assert ownership.listed(files) == {"config.yaml"}


def test_what_lies_behind_a_link_stays(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    fill(tmp_path, {"disk/step_00000001/state.json": b"", "disk/report.html": b"", "run/a": b""})
    files.checkpoints.symlink_to(tmp_path / "disk")
    files.report.symlink_to(tmp_path / "disk" / "report.html")
    owned_by_a_run(files, "report.html", saves=("checkpoints/step_00000001",))
    with pytest.raises(
        UserError, match=r"did not write: checkpoints, report\.html; move them away"
    ):
        run_folder.check_free(files, overwrite=True)
    run_folder.clear(files)
    assert (tmp_path / "disk/step_00000001/state.json").exists()
    assert (tmp_path / "disk/report.html").exists()
    assert files.report.is_symlink()


def test_a_hostile_folder_cannot_make_a_command_write_behind_a_link(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    fill(tmp_path, {"outside/a.png": b"mine", "victim": b"mine\n", "run/config.yaml": b""})
    owned_by_a_run(files, "config.yaml", "pictures/a.png")
    (files.root / "pictures").symlink_to(tmp_path / "outside")
    with (
        pytest.raises(UserError, match=r"pictures/a\.png would be written through a symbolic link"),
        ownership.placed(files, files.root) as drafts,
    ):
        fill(drafts, {"pictures/a.png": b"new"})
    files.owned.unlink()
    files.owned.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=r"run\.files is a link or not a regular file"):
        ownership.claim(files, files.report)
    assert (tmp_path / "outside/a.png").read_bytes() == b"mine"
    assert (tmp_path / "victim").read_bytes() == b"mine\n"


def test_a_fifo_in_the_place_of_a_list_does_not_block(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    os.mkfifo(files.manifest)
    os.mkfifo(files.owned)
    assert not ownership.is_run(files)
    assert ownership.listed(files) == set()


def test_auto_resume_does_not_replace_what_a_finished_run_left(configure, ranks) -> None:
    config = configure("training.steps=1", "evaluation.at_end=false")
    files = RunFiles(Path(config.run.dir))
    train_as_rank(config, Start(), ranks)
    shutil.rmtree(files.checkpoints)
    before = contents(files.portable)
    with pytest.raises(UserError, match="holds a portable checkpoint of an earlier run"):
        train_as_rank(config, Start(auto_resume=True), ranks)
    assert contents(files.portable) == before


def test_results_replace_their_own_kind_and_nothing_else(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    fill(files.root, {"config.yaml": b"", "evaluation/theirs.txt": b"mine"})
    owned_by_a_run(files, "config.yaml")

    def write(name: str, text: str) -> None:
        with ownership.placed(files, files.evaluation) as drafts:
            fill(drafts, {f"{name}.json": text.encode(), f"{name}_pictures/a.png": b"png"})
            if name == "theirs":
                fill(drafts, {"theirs.txt": b"table"})

    write("test", "first")
    write("test", "second")
    assert (files.evaluation / "test.json").read_text() == "second"
    before = contents(files.root)
    with pytest.raises(UserError, match=r"evaluation/theirs\.txt would be overwritten"):
        write("theirs", "third")
    assert contents(files.root) == before
    assert [p.name for p in ownership.foreign(files)] == ["theirs.txt"]


def test_an_older_run_is_told_what_to_do(tmp_path: Path) -> None:
    fill(tmp_path, {"config.yaml": b"", "ds_config.json": b"{}", "checkpoints/latest": b""})
    with pytest.raises(UserError, match=r"older version, without run.json: .*--resume"):
        run_folder.check_free(RunFiles(tmp_path), overwrite=True)


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_run_dir_is_an_error(value: str) -> None:
    with pytest.raises(UserError, match=r"run\.dir: must not be empty"):
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
        "from svilm_fast.train.folder.lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); lock.acquire(); lock.keep()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    assert subprocess.run(command, check=False).returncode == -9
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] > 0
    before = contents(tmp_path)
    lock = FolderLock(tmp_path / "run")
    lock.acquire()
    lock.release()
    assert contents(tmp_path) == before  # as a start that is refused leaves it


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.dir=.*cannot be created \(Not a directory"):
        FolderLock(tmp_path / "file" / "run").acquire()
    with pytest.raises(UserError, match=r"is a file; choose another run\.dir"):
        FolderLock(tmp_path / "file").acquire()


def test_an_evaluation_can_fail_and_nothing_is_lost(configure, ranks, monkeypatch) -> None:
    from svilm_fast.tasks.pretrain import retrieval

    def broken(*args: object, **options: object) -> None:
        raise ValueError("data.val: no clip could be decoded")

    config = configure("training.steps=2", "evaluation.every_steps=1")
    root = Path(config.run.dir)
    monkeypatch.setattr(retrieval, "evaluate", broken)
    failed = r"evaluation of step \d failed: .*no clip could be decoded; .* is saved: .*--resume"
    with pytest.raises(EvaluationError, match=failed) as caught:
        train_as_rank(config, Start(), ranks)
    assert exit_code_of(caught.value) == 5
    assert (root / "checkpoints" / "step_00000001" / "manifest.json").is_file()
    config = configure("training.steps=2", "evaluation.every_steps=0")
    with pytest.raises(EvaluationError, match=failed):
        train_as_rank(config, Start(resume=True), ranks)
    assert (root / "checkpoints" / "step_00000002" / "manifest.json").is_file()
    assert (root / "portable" / "manifest.json").is_file()
    monkeypatch.undo()
    for _ in range(2):  # what was evaluated is not evaluated again
        assert train_as_rank(config, Start(resume=True), ranks).finished
        assert (root / "metrics.jsonl").read_text().count('"retrieval/t2v_R@1"') == 1


def test_a_split_smaller_than_the_ranks_is_refused(configure, ranks, tmp_path: Path) -> None:
    from dataclasses import replace

    from svilm_fast.tasks.base import task_of
    from svilm_fast.train.run.session import _open_evaluators

    config = configure("evaluation.max_clips=1")
    with pytest.raises(UserError, match="has 1 clip to evaluate on 2 ranks"):
        _open_evaluators(task_of(config), config, _tokenizer(config), replace(ranks, world_size=2))


def _tokenizer(config):
    from svilm_fast.data.dataset import prepare_tokenizer
    from svilm_fast.data.samples import open_split

    return prepare_tokenizer(config.data, open_split(config.data, "train"))


def test_a_linked_run_folder_itself_is_fine(tmp_path: Path) -> None:
    fill(tmp_path, {"disk/config.yaml": b""})
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    files = RunFiles(tmp_path / "run")
    owned_by_a_run(files, "config.yaml")
    for text in (b"first", b"second"):
        with ownership.placed(files, files.root) as drafts:
            fill(drafts, {"report.html": text})
    assert files.report.read_bytes() == b"second"


def test_a_pipe_or_a_huge_file_in_place_of_a_record_does_not_hang(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    os.mkfifo(files.manifest)
    assert not ownership.is_run(files)
    with pytest.raises(ValueError, match=r"run\.json is missing or not a regular file"):
        read_json(files.manifest)
    with files.environment.open("wb") as file:
        file.truncate(LONGEST_JSON + 1)
    with pytest.raises(ValueError, match=r"env\.json is damaged \(larger than 64 MiB\)"):
        read_json(files.environment)
    for content in ("{", "[" * 100_000, "\xff"):
        files.config.write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=r"config\.yaml is damaged \(not JSON\)"):
            read_json(files.config)


def test_a_folder_that_a_refused_run_removes_in_between_is_created_again(
    tmp_path: Path, monkeypatch
) -> None:
    lock = FolderLock(tmp_path / "new" / "run")
    opened, removed = os.open, []

    def late(path: Path, *args: int) -> int:
        if path == lock.path and not removed:
            removed.append(lock.folder.rmdir())
        return opened(path, *args)

    monkeypatch.setattr(os, "open", late)
    lock.acquire()
    assert lock.path.is_file()
    lock.release()
    assert not (tmp_path / "new").exists()
