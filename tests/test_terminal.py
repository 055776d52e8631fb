"""Text from data cannot control a terminal, no matter how it is printed."""

from __future__ import annotations

import io
import logging
import re

import pytest
import rich.console
import typer
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.table import table
from svilm_fast.core.console import Console
from svilm_fast.core.terminal import log_to_stderr, print, print_traceback, printable
from svilm_fast.data.errors import DataError
from svilm_fast.data.pack import PackReport
from svilm_fast.data.skips import Skip
from svilm_fast.train.run.progress import Display
from svilm_fast.train.run_app import run_app

# Clears the screen, sets the window title, reorders text, restarts the line; rich markup; an emoji
# code; half an emoji.
HOSTILE = "\x1b[2J\x1b]0;title\x07\u202egpj.exe\r\x9b31m[red]x[/red][/]:dog:\ud83d"
SHOWN = "\\x1b[2J\\x1b]0;title\\x07\\u202egpj.exe\\x0d\\x9b31m[red]x[/red][/]:dog:\\ud83d"


def assert_harmless(output: str) -> None:
    unsafe = [c for c in output if not c.isprintable() and c not in "\n\t"]
    assert not unsafe, unsafe
    # rich drops some control characters instead
    shown = re.sub(r"\\x07|\\x0d|\s", "", output)
    assert SHOWN.replace("\\x07", "").replace("\\x0d", "") in shown


def test_what_is_escaped_and_what_stays():
    assert printable(HOSTILE) == SHOWN
    # Text in any script, emoji joined by U+200D, tab and newline are unchanged.
    for text in ("naïve 日本語 नमस्ते עברית", "\U0001f468\u200d\U0001f469", "a\tb\nc", "[bold]"):
        assert printable(text) == text
    assert printable("a\nb", lines=False) == "a\\nb"


def test_print_and_tracebacks(capsys):
    print(HOSTILE, end="")
    assert capsys.readouterr().out == SHOWN
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        print_traceback(error)
    assert_harmless(capsys.readouterr().err)


def test_log_records(capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    log_to_stderr(logging.INFO, "%(levelname)s: %(message)s")
    logging.getLogger("svilm_fast.test").warning("%s", HOSTILE)
    assert_harmless(capsys.readouterr().err)


@pytest.mark.parametrize("forced", [False, True])
def test_a_console_takes_texts_literally(forced):
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=forced, color_system=None)
    view = Table(title=HOSTILE, caption=HOSTILE)
    view.add_column(HOSTILE)
    view.add_row(HOSTILE)
    view.add_row(Text(HOSTILE))
    console.print(view)
    console.print(HOSTILE)
    console.print(Text(HOSTILE))
    output = file.getvalue()
    assert output.count("\\x1b[2J") == 7
    assert_harmless(output)


def test_styles_of_ours_still_reach_a_terminal():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", width=40)
    console.print(Text("no figure", style="red"))
    assert file.getvalue() == "\x1b[31mno figure\x1b[0m\n"


def test_a_progress_bar_shows_a_hostile_description():
    file = io.StringIO()
    console = Console(file=file, width=160, force_terminal=False)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(HOSTILE, total=1)
    # The column is as wide as the text before it was escaped.
    assert file.getvalue().startswith("\\x1b[2J\\x1b]0;title\\u202e")
    assert "\x1b" not in file.getvalue()


def test_errors_of_a_command(capsys):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise DataError(f"no sample {HOSTILE}")

    assert run_app(app, []) == 2
    assert_harmless(capsys.readouterr().err)


def test_wrong_usage_of_a_command(capsys):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def run(name: str) -> None:
        raise typer.BadParameter(f"no run {name}")

    assert run_app(app, [HOSTILE]) == 2
    assert_harmless(capsys.readouterr().err)
    assert run_app(app, ["x", f"--{HOSTILE}"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_log_records_of_a_command_without_a_handler(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def warn() -> None:
        logging.getLogger("svilm_fast.test").warning("not in the report: %s", HOSTILE)

    assert run_app(app, []) == 0
    assert_harmless(capsys.readouterr().err)


def test_the_report_of_a_packing_is_one_line_a_sample(capsys):
    skip = Skip(f"{HOSTILE}\nrefused nothing", "data", "bad")
    print("\n".join(PackReport(refused=[skip]).lines()))
    output = capsys.readouterr().out
    assert_harmless(output)
    assert "\nrefused nothing" not in output


def test_messages_of_a_run_above_its_bar(capsys):
    file = io.StringIO()
    console = Console(file=file, width=160, force_terminal=False)
    options = {"first": True, "total_steps": 2, "start_step": 0, "on_gpu": False}
    for mode in ("on", "off"):
        display = Display(mode, console=console, **options)
        display.say(HOSTILE)
        display.close()
    assert_harmless(file.getvalue())
    assert_harmless(capsys.readouterr().out)


def test_the_table_of_a_benchmark():
    record = Record(HOSTILE, "ops", "op", "", "", "", "", f"failed: {HOSTILE}")
    file = io.StringIO()
    Console(file=file, width=400).print(table([record]))
    assert file.getvalue().count("\\x1b[2J") == 2
    assert_harmless(file.getvalue())


def test_rich_alone_lets_it_through():
    """Why there is a `Console` class; if this test fails, the class may have become unnecessary."""
    file = io.StringIO()
    rich.console.Console(file=file, width=120).print(Text("\x1b[2J"))
    assert "\x1b[2J" in file.getvalue()
