"""The `svilm bench` commands."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from svilm_fast.bench.ab.command import ab
from svilm_fast.bench.comm.command import comm
from svilm_fast.bench.compare.command import compare
from svilm_fast.bench.counts.command import counts
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.memory_scaling.command import memory
from svilm_fast.bench.report.command import report
from svilm_fast.bench.report.gpu_table import table
from svilm_fast.bench.run.command import run_suites
from svilm_fast.bench.run.peers_command import peers
from svilm_fast.bench.static.command import static
from svilm_fast.core.errors import UserError
from svilm_fast.train.run_app import EXIT_UNEXPECTED, exit_code_of, one_line


class ToolFailure(UserError):
    """A command broke by itself, which says nothing of what it was to measure."""

    exit_code = int(ExitCode.FAILED)


class Commands(TyperGroup):
    """Keeps exit status 1 for a regression: whatever is unexpected ends as `FAILED`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # What the command line library raises to end a command is known by these.
            ends = hasattr(error, "exit_code") or isinstance(error, typer.Abort)
            if ends or exit_code_of(error) != EXIT_UNEXPECTED:
                raise
            raise ToolFailure(f"{one_line(error)} (SVILM_DEBUG=1 shows where)") from error


app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Benchmarks and the gates built on them."
)


@app.callback()
def _bench() -> None:
    """Benchmarks and the gates built on them."""


app.command("static")(static)
app.command("compare")(compare)
app.command("counts")(counts)
app.command("report")(report)
app.command("table")(table)
app.command("run")(run_suites)
app.command("peers")(peers)
app.command("memory")(memory)
app.command("ab")(ab)
app.command("comm")(comm)
