"""Commands that are registered by name and imported only when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand


def examples_text(examples: tuple[str, ...]) -> str:
    """Format example command lines as the epilog of a help page (one paragraph for each)."""
    return "\n\n".join(["Examples:", *(f"  {example}" for example in examples)])


class LazyCommand(TyperCommand):
    """Stands for a command in listings and completion; the first call imports its module.

    Only its name and one line of help exist before that, so `svilm --help` imports no PyTorch.
    """

    target: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]

    def function(self) -> Callable[..., Any]:
        """Import and return the function that runs the command."""
        module, _, attribute = self.target.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return function

    def load(self) -> Any:
        """Return the command itself, with all its options."""
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(self.name, epilog=examples_text(self.examples))(self.function())
        return typer.main.get_command(app)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        return self.load().make_context(*arguments, **options)


def add_command(group: typer.Typer, name: str, target: str, summary: str, *examples: str) -> None:
    """Register the function `target` ("module:function") as the command `name` of a group.

    Args:
        summary: the line shown in the group's help; the first line of the function's docstring.
        examples: whole command lines, shown below the command's own help.
    """
    contents = {"target": target, "examples": examples}
    command_class: type[TyperCommand] = type("LazyCommand", (LazyCommand,), contents)
    group.command(name, cls=command_class, help=summary)(_not_loaded)


def _not_loaded() -> None:
    raise AssertionError("a lazy command runs through make_context, which replaces it")
