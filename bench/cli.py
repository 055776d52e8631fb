"""The `svilm bench` commands."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.core.errors import UserError
from svilm_fast.core.lazy_commands import add_command, examples_text
from svilm_fast.train.run_app import EXIT_UNEXPECTED, exit_code_of, one_line


class ToolFailure(UserError):
    """The command itself failed, so nothing is known about the code that it measures."""

    exit_code = int(ExitCode.FAILED)


class Commands(TyperGroup):
    """Reserves exit status 1 for a regression: any unexpected error ends as `FAILED`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # typer and click end a command by raising these.
            ends = hasattr(error, "exit_code") or isinstance(error, typer.Abort)
            if ends or exit_code_of(error) != EXIT_UNEXPECTED:
                raise
            raise ToolFailure(f"{one_line(error)} (SVILM_DEBUG=1 shows where)") from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    help="Run benchmarks and the gates built on them.",
    epilog=examples_text(("svilm bench run", "svilm bench ab --base main")),
)

add_command(
    app,
    "static",
    "svilm_fast.bench.static.command:static",
    "Compile every declared kernel variant for each target GPU and check the machine code.",
    "svilm bench static --op infonce",
    "svilm bench static --check --workers 4",
)
add_command(
    app,
    "compare",
    "svilm_fast.bench.compare.command:compare",
    "Compare two result files of one machine, id by id.",
    "svilm bench compare before.json after.json --fail-over 5%",
)
add_command(
    app,
    "counts",
    "svilm_fast.bench.counts.command:counts",
    "Count instructions, collectives, host waits and peak bytes; compare with their tables.",
    "svilm bench counts --check --kind collectives --kind waits --kind memory",
)
add_command(
    app,
    "report",
    "svilm_fast.bench.report.command:report",
    "Write one HTML file: roofline, peers, scaling with the batch, history, every figure.",
    "svilm bench report run.json --out bench.html",
)
add_command(
    app,
    "table",
    "svilm_fast.bench.report.gpu_table:table",
    "Write the README's GPU figures: forward and backward of every fused op and case.",
    "svilm bench table",
    "svilm bench table --check",
)
add_command(
    app,
    "run",
    "svilm_fast.bench.run.command:run_suites",
    "Verify every benchmark on its own tensors, time it, write records and a table.",
    "svilm bench run",
    "svilm bench run --suite ops --only '*/infonce/*' --out run.json",
)
add_command(
    app,
    "peers",
    "svilm_fast.bench.run.peers_command:peers",
    "Time and peak memory of every provider, interleaved, with ratios to our path.",
    "svilm bench peers --op infonce",
)
add_command(
    app,
    "memory",
    "svilm_fast.bench.memory_scaling.command:memory",
    "Measure how memory grows with the global batch, for losses and for a whole step.",
    "svilm bench memory --out memory.json --figure memory.png",
)
add_command(
    app,
    "growth",
    "svilm_fast.bench.growth.command:growth",
    "Train a grown network and one from scratch, and draw loss over FLOPs.",
    "svilm bench growth",
    "svilm bench growth --out runs/growth --figure growth.png",
)
add_command(
    app,
    "data-index",
    "svilm_fast.bench.data_index.command:data_index",
    "Measure time and memory of a data set's index, open in 8 ranks with a worker each.",
    "svilm bench data-index",
    "svilm bench data-index --samples 100000 --folder /scratch",
)
add_command(
    app,
    "ab",
    "svilm_fast.bench.ab.command:ab",
    "Time two versions in interleaved pairs; report for each benchmark whether head is slower.",
    "svilm bench ab --base main",
    "svilm bench ab --base main --suite ops --threshold 2%",
)
add_command(
    app,
    "comm",
    "svilm_fast.bench.comm.command:comm",
    "Measure all_gather, reduce_scatter and all_reduce; compare a step's bytes and time.",
    "svilm bench comm --ranks 2,4",
)
add_command(
    app,
    "dropping",
    "svilm_fast.bench.dropping:dropping",
    "Time the video encoder's forward and backward with and without dropping, in turns.",
    "svilm bench dropping",
    "svilm bench dropping --config viclip_demo --clips 16 video.drop.rate=0.5",
)
add_command(
    app,
    "kept-tokens",
    "svilm_fast.bench.kept_tokens:kept_tokens",
    "Time decoding of compressed clips, whole and for the kept tokens alone, in turns.",
    "svilm bench kept-tokens",
    "svilm bench kept-tokens --rounds 50 --out kept-tokens.json",
)
add_command(
    app,
    "ranking",
    "svilm_fast.bench.ranking:ranking",
    "Rank texts and videos in one float32 pass and by the float64 reference, in turns.",
    "svilm bench ranking --pairs 50000",
)
