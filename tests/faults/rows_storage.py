"""Rows in which the storage fails: damaged, missing and exchanged files, and a full disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from svilm_fast.core.errors import EXIT_BAD_INPUT, CheckpointError
from svilm_fast.train.checkpoint.store import newest_verified, problem_with, tag_of
from svilm_fast.train.folder.manifest import LATEST, MANIFEST, read_manifest
from tests.faults.rank_program import fill
from tests.faults.registry import Tries, need, row
from tests.faults.rig import Rig, Run, copy_of, newest_step, same_end, same_losses

STEPS, OLDER = 12, 6
SETTINGS = (f"training.steps={STEPS}", f"checkpoint.every_steps={OLDER}")
MEGABYTES = 40


def _resumes_from(rig: Rig, root: Path, step: int, whole: Run) -> None:
    run = rig.start(root, *SETTINGS, options=["--resume"]).finished()
    need(f"resumed at step {step}" in run.output, f"not resumed at {step}: {run.tail()}")
    same_end(run, whole, STEPS)


def _same_listing(folder: Path, files: dict) -> bool:
    """Whether a flipped bit of a manifest left its meaning as it was: white space."""
    try:
        return read_manifest(folder) == files
    except ValueError:
        return False


@row(
    6,
    "a flipped bit in any byte of a checkpoint",
    "detected, and the older checkpoint is taken",
    tries=600,
    short=40,
)
def flipped_bits(rig: Rig, tries: int, seen: Tries) -> None:
    whole = rig.saved(*SETTINGS)
    root = copy_of(whole, rig.new_folder("flipped"))
    checkpoints = root / "checkpoints"
    newest = checkpoints / tag_of(STEPS)
    paths, files, white = sorted(newest.iterdir()), read_manifest(newest), 0
    for number in range(tries):
        # Every file in turn, else the large ones would get nearly all.
        path = paths[number % len(paths)]
        content = path.read_bytes()
        place, bit = rig.random.randrange(len(content)), rig.random.randrange(8)
        with seen.one(f"{path.name}, byte {place}, bit {bit}"):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            try:
                harmless = path.name == MANIFEST and _same_listing(newest, files)
                white += harmless
                tag = newest_verified(checkpoints)
                need(tag == (newest.name if harmless else tag_of(OLDER)), f"took {tag}")
            finally:
                path.write_bytes(content)
    with seen.one("a real start with a flipped bit"):
        path = next(newest.glob("*optim_states.pt"))
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(bytes(damaged))
        _resumes_from(rig, root, OLDER, whole)
    seen.notes.append(f"{white} flips fell on white space of the manifest and changed nothing")


@row(
    7,
    "each file cut to 0, 1, 50 and 99 %, or missing; files of ranks exchanged",
    "refused, and the message names the file",
    tries=56,
    short=56,
)
def truncated(rig: Rig, tries: int, seen: Tries) -> None:
    whole = rig.saved(*SETTINGS)
    root = copy_of(whole, rig.new_folder("cut"))
    newest = root / "checkpoints" / tag_of(STEPS)
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        for share in (0, 0.01, 0.5, 0.99, None):
            with seen.one(f"{path.name} {'missing' if share is None else f'cut to {share:.0%}'}"):
                if share is None:
                    path.unlink()
                else:
                    path.write_bytes(content[: int(share * len(content))])
                _refused(newest, path.name)
            path.write_bytes(content)
    for first in sorted(newest.glob("*rank_0*")):
        second = newest / _of_rank_1(first.name)
        if not second.exists() or first.read_bytes() == second.read_bytes():
            continue
        with seen.one(f"{first.name} and {second.name} exchanged"):
            _exchange(first, second)
            try:
                _refused(newest, first.name, second.name)
            finally:
                _exchange(first, second)
    need(problem_with(newest) is None, "the row left damage behind")
    need(seen.made >= tries, f"only {seen.made} files and ways")


def _of_rank_1(name: str) -> str:
    return name.replace("pp_rank_0_", "pp_rank_1_").replace("rank_00000", "rank_00001")


def _exchange(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def _refused(folder: Path, *names: str) -> None:
    problem = problem_with(folder)
    need(problem is not None, "it is trusted")
    need(any(name in str(problem) for name in names), f"the file is not named: {problem}")
    need(newest_verified(folder.parent) == tag_of(OLDER), "the older one is not taken")


@row(
    8,
    "disk full before and during a save",
    "the previous checkpoint intact, bytes reported, no partial folder, the policy kept, the end "
    "equal",
    tries=8,
    short=2,
)
def full_disk(rig: Rig, tries: int, seen: Tries) -> None:
    settings = ("training.steps=12", "checkpoint.every_steps=3")
    whole = rig.reference(*settings)
    for number in range(tries):
        left = rig.random.randrange(0, 1_600_000)
        with rig.small_disk(MEGABYTES) as (disk, mounted):
            if number == 0:
                seen.notes.append(
                    f"a tmpfs of {MEGABYTES} MB was filled"
                    if mounted
                    else "no file system could be mounted: ENOSPC was raised by the save"
                )
            policy = "stop" if number % 4 < 3 else "continue"
            with seen.one(f"{left:,} bytes left, when_full={policy}"):
                _one_full_disk(rig, disk, whole, settings, left, policy, mounted=mounted)


def _one_full_disk(
    rig: Rig,
    disk: Path,
    whole: Run,
    settings: tuple[str, ...],
    left: int,
    policy: str,
    *,
    mounted: bool,
) -> None:
    root, ballast = disk / "run", disk / "ballast"
    step = 6
    if policy == "continue" and mounted:
        # Full before the save: it is skipped, and the run continues.
        run = rig.start(root, *settings, f"checkpoint.when_full={policy}")
        run.come_to(lambda: newest_step(run) >= 3, "the save of step 3")
        fill(disk, 2_000_000)
        run.come_to(lambda: "not saved: not enough disk space" in run.output, "the refusal to save")
        ballast.unlink()
        run.finished()
        same_end(run, whole, 12)
        return
    fault = (
        {"kind": "fill", "step": step, "left": left, "folder": str(disk)}
        if mounted
        else {"kind": "imitated_full", "step": step, "rank": left % 2}
    )
    run = rig.start(root, *settings, faults=[fault])
    need(run.wait() == EXIT_BAD_INPUT, f"exit code {run.code()}; {run.tail()}")
    need(f"not enough disk space for the checkpoint of step {step}" in run.tail(), run.tail())
    need("bytes" in run.tail() and "are free" in run.tail(), f"no bytes reported: {run.tail()}")
    need(not (run.checkpoints / tag_of(step)).exists(), "the partial folder is left")
    need(newest_step(run) == 3, f"the newest checkpoint is {newest_step(run)}")
    ballast.unlink(missing_ok=True)
    rest = rig.start(root, *settings, options=["--resume"]).finished()
    same_end(rest, whole, 12)
    same_losses(rest, whole, 1, 12)


def _missing(folder: Path) -> None:
    (folder / LATEST).unlink()


def _empty(folder: Path) -> None:
    (folder / LATEST).write_bytes(b"")


def _absent(folder: Path) -> None:
    (folder / LATEST).write_text(tag_of(99_999_999))


def _noise(folder: Path) -> None:
    (folder / LATEST).write_bytes(b"\xff\0" * 300)


def _none_left(folder: Path) -> None:
    for path in folder.glob("step_*"):
        shutil.rmtree(path)


@row(
    9,
    "`latest` missing, empty, noise or naming nothing; no checkpoint left",
    "the newest checkpoint is taken, or the start refused; never from scratch",
    tries=5,
    short=5,
)
def latest(rig: Rig, tries: int, seen: Tries) -> None:
    whole = rig.saved(*SETTINGS)
    for change in (_missing, _empty, _absent, _noise, _none_left)[:tries]:
        with seen.one(change.__name__.strip("_")):
            root = copy_of(whole, rig.new_folder("latest"))
            change(root / "checkpoints")
            if change is _none_left:
                try:
                    newest_verified(root / "checkpoints")
                except CheckpointError as error:
                    need("latest names" in str(error), str(error))
                else:
                    need(False, "a start from scratch is not refused")
            else:
                need(newest_verified(root / "checkpoints") == tag_of(STEPS), "another is taken")
            if rig.short and change is not _empty:
                continue
            run = rig.start(root, *SETTINGS, options=["--auto-resume"])
            if change is _none_left:
                need(run.wait() == EXIT_BAD_INPUT, f"exit code {run.code()}; {run.tail()}")
            else:
                need(f"resumed at step {STEPS}" in run.finished().output, run.tail())
