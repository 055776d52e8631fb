"""The commit of the code, with and without changes, and where there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from svilm_fast.core.checkout import package_commit


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one committed file."""
    (tmp_path / "code.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_commit_and_its_changes(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert package_commit(checkout) == commit
    (checkout / "untracked.txt").write_text("results")
    assert package_commit(checkout) == commit
    (checkout / "code.py").write_text("changed = True\n")
    assert package_commit(checkout) == f"{commit}+changes"


def test_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert package_commit(tmp_path) is None


def test_a_git_that_fails_is_not_a_clean_checkout(checkout: Path) -> None:
    (checkout / ".git" / "index").write_bytes(b"damaged")  # stops `git status`, not `rev-parse`
    assert package_commit(checkout) is None
