"""The commit of the code, with and without changes, and where there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from svilm_fast.core.checkout import package_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a package in a checkout."""
    file = tmp_path / "checkout" / "svilm_fast" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(svilm_fast, "__file__", str(file))
    return file


def test_a_commit_and_its_changes(package: Path) -> None:
    root = package.parents[1]
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    commit = git(root, "rev-parse", "--short=12", "HEAD")
    assert package_commit() == commit
    (root / "untracked.txt").write_text("results")
    assert package_commit() == commit
    package.write_text("changed = True\n")
    assert package_commit() == f"{commit}+changes"


def test_no_checkout_has_no_commit(package: Path) -> None:
    assert package_commit() is None


def test_a_git_that_fails_is_not_a_clean_checkout(package: Path) -> None:
    root = package.parents[1]
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    (root / ".git" / "index").write_bytes(
        b"damaged"
    )  # `git status` fails, `git rev-parse` does not
    assert package_commit() is None
