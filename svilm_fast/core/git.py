"""Runs git commands."""

from __future__ import annotations

import subprocess
from pathlib import Path

from svilm_fast.core.messages import single_line


def git(repository: Path, *arguments: str) -> str:
    """Return the output of a git command.

    Raises:
        ValueError: git is not installed, or the command failed; with git's message.
    """
    try:
        result = subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise ValueError("git is not installed") from None
    if result.returncode:
        raise ValueError(f"git {arguments[0]} in {repository}: {single_line(result.stderr)}")
    return result.stdout
