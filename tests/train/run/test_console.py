"""Errors reach the terminal as one line with a fitting exit code."""

from __future__ import annotations

import pytest
import typer

from svilm_fast.core.errors import ConfigError, NonFiniteError
from svilm_fast.data.errors import MissingFileError, SkipBudgetError, WorkerError
from svilm_fast.train.run_app import run_app, with_home


def app_that_raises(error: BaseException) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("unknown key 'a'"), 2, "error: unknown key 'a'"),
        (MissingFileError("no file 'x'"), 2, "error: no file 'x'"),
        (FileNotFoundError(2, "No such file", "x.mp4"), 2, "'x.mp4'"),
        (ValueError("two\nlines"), 2, "error: two lines"),
        (NonFiniteError("loss"), 3, "error: loss"),
        (RuntimeError("odd"), 1, "error: RuntimeError: odd (SVILM_DEBUG=1 shows where)"),
        (KeyError("k"), 1, "error: KeyError: 'k'"),
    ],
)
def test_one_line_and_an_exit_code(error, code: int, line: str, capsys) -> None:
    assert run_app(app_that_raises(error), []) == code
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1


def test_the_traceback_comes_on_request(capsys, monkeypatch) -> None:
    monkeypatch.setenv("SVILM_DEBUG", "1")
    assert run_app(app_that_raises(ConfigError("wrong")), []) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConfigError("wrong"), MissingFileError("no shards")])
def test_what_every_rank_knows_is_said_once(error, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_app(app_that_raises(error), []) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert run_app(app_that_raises(error), []) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("error", [WorkerError("a bad clip"), SkipBudgetError("too many bad")])
def test_what_one_rank_may_find_alone_is_said_by_that_rank(error, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_app(app_that_raises(error), []) == 2
    assert capsys.readouterr().err == f"error: rank 1: {error}\n"


def test_an_exit_code_that_a_command_returns_is_kept() -> None:
    app = typer.Typer()

    @app.command()
    def stop() -> int:
        return 143

    assert run_app(app, []) == 143


def test_a_wrong_option_is_bad_usage(capsys) -> None:
    assert run_app(app_that_raises(ConfigError("unused")), ["--nonsense"]) == 2
    assert "No such option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "means"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("--out=~/x", "--out=/home/me/x"),
        ("--out", "--out"),
        ("a/~/b", "a/~/b"),
        ("run.name=~/x", "run.name=~/x"),
        ("~unknown-user/x", "~unknown-user/x"),
    ],
)
def test_a_tilde_at_the_start_of_a_value_is_the_home_folder(monkeypatch, argument, means) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert with_home(argument) == means
