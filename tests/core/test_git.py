"""A failed git command raises an error with git's message."""

import pytest

from svilm_fast.core.git import git


def test_the_answer_is_gits(tmp_path):
    git(tmp_path, "init", "--quiet", "--initial-branch", "trunk")
    assert git(tmp_path, "symbolic-ref", "HEAD") == "refs/heads/trunk\n"


def test_a_refusal_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^git log in .*: fatal: .*not a git repository") as error:
        git(tmp_path, "log")
    assert "\n" not in str(error.value)


def test_a_machine_without_git_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="git is not installed"):
        git(tmp_path, "log")
