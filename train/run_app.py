"""Runs a command and reports its errors in one line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from svilm_fast.core.errors import EXIT_BAD_INPUT, EvaluationError, RankError, UserError
from svilm_fast.core.messages import single_line
from svilm_fast.core.terminal import guard_unconfigured_logging, print, print_traceback, printable
from svilm_fast.data.errors import DataError, SkipBudgetError, WorkerError

DEBUG = "SVILM_DEBUG"
EXIT_UNEXPECTED = 1
# Errors that not all ranks meet: in the samples of one rank, or the end of another rank. The latter
# is reported by every rank, for the log of its node.
ONE_RANKS_ERRORS = (SkipBudgetError, WorkerError, RankError, EvaluationError)


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, after its type if that is not a user's error."""
    name, message = type(error).__name__, single_line(error, limit=None)
    expected = isinstance(error, UserError | DataError | OSError | ValueError)
    return message if expected or message == name else f"{name}: {message}"


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a user's error, 2 for other bad input, 1 for anything unexpected."""
    if isinstance(error, UserError):
        return error.exit_code
    return EXIT_BAD_INPUT if isinstance(error, ValueError | OSError) else EXIT_UNEXPECTED


def found_by_every_rank(error: BaseException) -> bool:
    """Return whether all ranks meet this error, so that it is enough if one reports it."""
    return isinstance(error, UserError | DataError) and not isinstance(error, ONE_RANKS_ERRORS)


def report(error: BaseException) -> int:
    """Print an error to stderr and return the exit code.

    Only rank 0 prints an error that all ranks meet.
    """
    rank = int(os.environ.get("RANK", "0"))
    if os.environ.get(DEBUG) == "1":
        print_traceback(error)
    elif rank == 0 or not found_by_every_rank(error):
        prefix = f"rank {rank}: " if rank else ""
        hint = "" if exit_code_of(error) != EXIT_UNEXPECTED else f" ({DEBUG}=1 shows where)"
        print(f"error: {prefix}{one_line(error)}{hint}", file=sys.stderr, flush=True)
    return exit_code_of(error)


def with_home(argument: str) -> str:
    """Expand a leading `~/` in the value of an argument.

    A shell expands `--out ~/x`, but not `--out=~/x`.
    """
    name, equals, value = argument.partition("=")
    option = name.startswith("--") and bool(equals)
    value = value if option else argument
    if value != "~" and not value.startswith("~/"):
        return argument
    return f"{name}={os.path.expanduser(value)}" if option else os.path.expanduser(value)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a typer application and return its exit code instead of leaving the interpreter."""
    guard_unconfigured_logging()
    command: Callable[..., Any] = typer.main.get_command(app)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = command(args=[with_home(text) for text in given], standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        print("aborted", file=sys.stderr)
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else EXIT_UNEXPECTED
    except Exception as error:
        # typer's usage errors come from click, or from the copy of click inside newer versions.
        show = getattr(error, "show", None)
        if show is None:
            return report(error)
        # A script may pass file names with control characters.
        error.message = printable(getattr(error, "message", str(error)))  # type: ignore[attr-defined]
        show()
        return int(getattr(error, "exit_code", EXIT_BAD_INPUT))
    return code if isinstance(code, int) else 0
