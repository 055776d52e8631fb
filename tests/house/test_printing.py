"""All output goes through `core.terminal` and `core.console`, which escape control characters."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TERMINAL = "svilm_fast.core.terminal"
# They print ASCII JSON for another of our processes; the first also runs inside older checkouts.
PROTOCOLS = {"bench/ab/worker.py", "bench/counts/host.py", "kernels/self_check.py"}
BANNED_MODULES = ("rich.console.Console", "rich.get_console", "rich.print", "rich.markup")
BANNED_CALLS = (
    *("typer.echo", "typer.secho", "click.echo", "click.secho", "traceback.print_exception"),
    *("traceback.print_exc", "sys.stdout.write", "sys.stderr.write", "logging.basicConfig"),
)


def violations(source: str) -> list[str]:
    """Lines of Python source that print without escaping."""
    tree = ast.parse(source)
    found = []
    ours, imported = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= names
            ours |= {alias.name for alias in node.names if node.module == TERMINAL}
            found += [f"line {node.lineno}: {n}" for n in names if n.startswith(BANNED_MODULES)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in BANNED_CALLS or (name == "print" and "print" not in ours):
                found.append(f"line {node.lineno}: {name}")
            if (
                "rich.progress.Progress" in imported
                and name == "Progress"
                and "console" not in {k.arg for k in node.keywords}
            ):
                found.append(f"line {node.lineno}: Progress on rich's own console")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "from rich import print\nprint(1)",
        "from rich.console import Console",
        "from rich.console import Group, Console",
        "typer.echo(name)",
        "sys.stderr.write(name)",
        "traceback.print_exception(error)",
        "logging.basicConfig(level=1)",
        "from rich.progress import Progress\nProgress(columns)",
        "console.print(escape(name))\nfrom rich.markup import escape",
    ],
)
def test_the_scan_finds_unescaped_printing(source):
    assert violations(source)


def test_the_scan_accepts_escaped_printing():
    assert not violations(
        "from rich.console import RenderableType\n"
        "from svilm_fast.core.terminal import Console, print\n"
        "print(1)\nConsole().print(2)\nProgress(console=Console())\n"
    )


@pytest.mark.parametrize("folder", ["kernels", "svilm_fast", "train", "bench"])
def test_the_package_prints_through_its_own_functions(folder):
    found = {}
    for path in sorted((ROOT / folder).glob("**/*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in (*PROTOCOLS, "svilm_fast/core/console.py", "svilm_fast/core/terminal.py"):
            found[name] = violations(path.read_text())
    assert {name: lines for name, lines in found.items() if lines} == {}
