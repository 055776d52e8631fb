"""The `svilm bench` commands."""

from __future__ import annotations

import typer

from svilm_fast.bench.ab.command import ab
from svilm_fast.bench.comm.command import comm
from svilm_fast.bench.compare.command import compare
from svilm_fast.bench.counts.command import counts
from svilm_fast.bench.growth.command import memory
from svilm_fast.bench.report.command import report
from svilm_fast.bench.run.command import run_suites
from svilm_fast.bench.run.peers_command import peers
from svilm_fast.bench.static.command import static

app = typer.Typer(no_args_is_help=True, help="Benchmarks and the gates built on them.")


@app.callback()
def _bench() -> None:
    """Benchmarks and the gates built on them."""


app.command("static")(static)
app.command("compare")(compare)
app.command("counts")(counts)
app.command("report")(report)
app.command("run")(run_suites)
app.command("peers")(peers)
app.command("memory")(memory)
app.command("ab")(ab)
app.command("comm")(comm)
