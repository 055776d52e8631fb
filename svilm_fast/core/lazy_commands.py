"""Commands whose modules are imported only when the command is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand


def examples_text(examples: tuple[str, ...]) -> str:
    """Format example command lines as the epilog of a help page, one paragraph each."""
    return "\n\n".join(["Examples:", *(f"  {example}" for example in examples)])


class LazyCommand(TyperCommand):
    """A placeholder with a name and one line of help, for listings and completion.

    Calling it imports the command's module. So `svilm --help` does not import PyTorch.
    """

    target: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]

    def function(self) -> Callable[..., Any]:
        """Import and return the function that runs the command."""
        module, _, attribute = self.target.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return function

    def load(self) -> Any:
        """Return the real command with all its options."""
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(self.name, epilog=examples_text(self.examples))(self.function())
        return typer.main.get_command(app)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        return self.load().make_context(*arguments, **options)


def add_command(group: typer.Typer, name: str, target: str, summary: str, *examples: str) -> None:
    """Register the function `target` ("module:function") as the command `name` of a group.

    Args:
        summary: the line in the help of the group, equal to the first line of the docstring.
        examples: complete command lines for the help of the command.
    """
    contents = {"target": target, "examples": examples}
    command_class: type[TyperCommand] = type("LazyCommand", (LazyCommand,), contents)
    group.command(name, cls=command_class, help=summary)(_not_loaded)


def _not_loaded() -> None:
    raise AssertionError("a lazy command runs through make_context, which replaces it")
