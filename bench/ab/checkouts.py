"""Checks out the two versions into temporary folders, which are always removed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from svilm_fast.core.git import git

SUITES = Path("svilm_fast") / "bench" / "suites"


@dataclass(frozen=True)
class Checkouts:
    """Folders of both sides (the same folder if a version is compared with itself)."""

    base: Path
    head: Path
    scratch: Path
    base_commit: str
    head_commit: str | None


def commit_of(repository: Path, reference: str) -> str:
    """The commit that a reference names.

    Raises:
        ValueError: no such commit.
    """
    try:
        found = git(repository, "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    except ValueError:
        raise ValueError(
            f"{repository} has no commit {reference!r}: name a branch, tag or commit that "
            "`git rev-parse` finds there (a shallow clone needs `git fetch --unshallow`)"
        ) from None
    return found.strip()


@contextmanager
def checkouts(
    repository: Path, base: str, head: str | None, *, itself: bool
) -> Iterator[Checkouts]:
    """Check out `base` and `head` (None: a copy of the working tree as it is now).

    With `itself` both sides are `base`. The folder names have the same length, because a path is
    part of a process's memory and shifts its addresses.
    """
    base_commit = commit_of(repository, base)
    head_commit = base_commit if itself else head and commit_of(repository, head)
    scratch = Path(tempfile.mkdtemp(prefix="svilm-ab-"))
    folders = scratch / "base", scratch / "head"
    try:
        git(repository, "worktree", "add", "--detach", str(folders[0]), base_commit)
        if head_commit is None:
            _copy_working_tree(repository, folders[1])
        elif not itself:
            git(repository, "worktree", "add", "--detach", str(folders[1]), head_commit)
        sides = (folders[0], folders[0] if itself else folders[1])
        for folder in sides:
            if not (folder / SUITES / "__init__.py").is_file():
                raise ValueError(
                    f"{folder.name}: that version has no list of benchmarks ({SUITES}); compare a "
                    "newer one"
                )
        yield Checkouts(*sides, scratch, base_commit, head_commit)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        git(repository, "worktree", "prune")


def take_benchmarks_from(source: Path, target: Path) -> None:
    """Replace a checkout's benchmarks, and the cases and peers of its ops, by another's."""
    shutil.rmtree(target / "bench")
    ignored = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(source / "bench", target / "bench", ignore=ignored)
    # Cases and peers are in the op folders: the same name must mean the same work on both sides.
    for path in source.glob("kernels/**/*.py"):
        there = target / path.relative_to(source)
        if path.name in ("cases.py", "peers.py") and there.is_file():
            shutil.copy2(path, there)


def _copy_working_tree(repository: Path, target: Path) -> None:
    """Copy tracked and untracked files as they are now, so that later edits have no effect."""
    listed = git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        source = repository / name
        if not source.is_symlink() and not source.is_file():
            continue
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, destination, follow_symlinks=False)
