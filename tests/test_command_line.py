"""Help pages: they import no heavy package, list every command, and have examples that parse."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib import metadata

import pytest

from svilm_fast import __version__
from tests.command_lines import groups, lazy_commands, parse

HEAVY = ("torch", "triton", "deepspeed", "matplotlib", "scipy", "sklearn", "av", "transformers")
RUN = """
import json, sys
from svilm_fast.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""

# The shell starts the console script by name.
COMPLETE = "import sys; sys.argv = ['svilm']; from svilm_fast.cli import main; main()"


def run(*arguments: str, **environment: str) -> tuple[str, set[str]]:
    """The output of a command, and the modules that its process has imported."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *shown, modules = done.stdout.splitlines()
    return "\n".join(shown), set(json.loads(modules))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("bench", "--help"),
        ("data", "pack", "--help"),
        ("pretrain", "--help"),
        ("train", "--help"),
        ("finetune", "--help"),
        ("evaluate", "action", "--help"),
        ("probe", "action", "--help"),
        ("plan", "--help"),
        ("config", "list"),
    ],
    ids=" ".join,
)
def test_what_only_prints_imports_no_heavy_package(arguments) -> None:
    shown, modules = run(*arguments)
    assert len(shown.splitlines()) > 2
    assert modules.isdisjoint(HEAVY), sorted(modules.intersection(HEAVY))


def test_the_version_names_what_the_kernels_were_built_on() -> None:
    shown, _ = run("--version")
    assert shown.splitlines() == [
        f"svilm-fast {__version__}",
        f"torch {metadata.version('torch')}",
        f"triton {metadata.version('triton')}",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("svilm ", {"pretrain", "config", "bench"}),
        ("svilm bench sta", {"static"}),
        ("svilm pretrain --weights", {"--weights", "--weights-from"}),
    ],
)
def test_a_shell_completes_commands_and_options(line: str, expected: set[str]) -> None:
    request = {"_SVILM_COMPLETE": "complete_bash", "COMP_WORDS": line}
    request["COMP_CWORD"] = str(len(line.split(" ")) - 1)
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        env=os.environ | request,
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected <= set(done.stdout.split()), done.stdout + done.stderr


@pytest.mark.parametrize(("name", "command"), lazy_commands(), ids=lambda part: str(part))
def test_a_command_is_listed_with_the_first_line_of_its_help(name, command) -> None:
    documented = command.function().__doc__
    assert documented, f"{name} has no docstring"
    assert command.help == documented.strip().split("\n\n")[0].replace("\n    ", " ")


EXAMPLES = [
    *((name, example) for name, command in lazy_commands() for example in command.examples),
    *(
        (name, line.strip())
        for name, group in groups()
        for line in (group.epilog or "").splitlines()[1:]
        if line
    ),
]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_calls_its_command_and_parses(name: str, example: str) -> None:
    assert f"{example} ".startswith(f"{name} ")
    parse(shlex.split(example)[1:])


def test_every_help_page_has_an_example() -> None:
    with_examples = {name for name, _ in EXAMPLES}
    pages = [name for name, _ in [*lazy_commands(), *groups()]]
    # The only example of a command without arguments is its own name.
    assert [name for name in pages if name not in with_examples] == []


def test_an_example_that_does_not_parse_is_noticed() -> None:
    with pytest.raises(Exception, match="--stepz"):
        parse(["ckpt", "convert", "--run", "x", "--stepz", "3"])
    with pytest.raises(AssertionError, match="no command 'converted'"):
        parse(["ckpt", "converted"])
