"""The commit of the code that runs."""

from __future__ import annotations

from pathlib import Path

from svilm_fast.core.git import git

_ROOT = Path(__file__).resolve().parents[2]


def package_commit(root: Path = _ROOT) -> str | None:
    """Return the commit of the checkout that holds the package, with `+changes` if files differ.

    None: the package is installed without its checkout, or `git` is missing or fails there.
    """
    if not (root / ".git").exists():
        return None
    try:
        commit = git(root, "rev-parse", "--short=12", "HEAD").strip()
        changed = git(root, "status", "--porcelain", "--untracked-files=no").strip()
    except ValueError:
        return None
    return f"{commit}+changes" if changed else commit
