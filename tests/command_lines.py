"""The commands of `svilm` as a tree, and whether a command line in a text is one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import typer

from svilm_fast.cli import app
from svilm_fast.core.lazy_commands import LazyCommand


def lazy_commands() -> Iterator[tuple[str, LazyCommand]]:
    """Every command with its full name, such as `svilm bench run`."""
    yield from _below(typer.main.get_command(app), "svilm")


def groups() -> Iterator[tuple[str, Any]]:
    """Every group of commands with its full name; the first is `svilm` itself."""
    root = typer.main.get_command(app)
    yield "svilm", root
    for name, command in root.commands.items():
        if not isinstance(command, LazyCommand):
            yield f"svilm {name}", command


def _below(group: Any, path: str) -> Iterator[tuple[str, LazyCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, LazyCommand):
            yield f"{path} {name}", command
        else:
            yield from _below(command, f"{path} {name}")


def resolve(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that the words after `svilm` call, and the remaining words."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in command.commands, f"svilm {' '.join(words)}: no command {name!r}"
        command = command.commands[name]
    return (command.load() if isinstance(command, LazyCommand) else command), rest


def parse(words: Sequence[str]) -> None:
    """Parse a whole command line without running it; raises the error that a user would see."""
    command, rest = resolve(words)
    command.make_context(" ".join(words), list(rest))
