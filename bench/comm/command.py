"""`svilm bench comm`: measures collectives, fits alpha and beta, checks the traffic model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from svilm_fast.bench.comm.fit import LinearFit, fit_line
from svilm_fast.bench.environment import environment
from svilm_fast.bench.rank_processes import run_ranks
from svilm_fast.bench.run.file import check_replaceable, write_json
from svilm_fast.bench.tables import markdown_table
from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.train.config.load import load_config
from svilm_fast.train.plan.traffic import loss_traffic
from svilm_fast.train.plan.workload import workload_of

WORKER = "svilm_fast.bench.comm.worker"
SIZES = [2**power for power in range(10, 23, 2)]
BATCHES = (64, 256, 1024)
FIT_COLUMNS = ("ranks", "collective", "alpha, µs", "bandwidth 1/beta, MB/s")
STEP_COLUMNS = (
    "ranks",
    "global batch",
    "bytes predicted",
    "bytes counted",
    "ms predicted",
    "ms measured",
    "measured / predicted",
)


def comm(
    ranks: Annotated[str, typer.Option(help="rank counts on this machine")] = "2,4,8",
    device: Annotated[str, typer.Option(help="cpu (gloo) or cuda (NCCL)")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="timed calls of each size")] = 40,
    out: Annotated[Path | None, typer.Option(help="folder for comm.json and comm.png")] = None,
) -> None:
    """Measure all_gather, reduce_scatter and all_reduce; compare a step's bytes and time.

    Exit status 1 if the bytes of the losses differ from the traffic model.
    """
    counts = _counts(ranks)
    if device == "cuda" and max(counts) > torch.cuda.device_count():
        raise UserError(
            f"--ranks {ranks} needs {max(counts)} GPUs, torch sees {torch.cuda.device_count()}"
        )
    if out is not None:
        check_replaceable(out / "comm.json")
    measured = [measure(count, device, repeats) for count in counts]
    where = torch.device(device)
    print("\n".join(lines(measured)))
    if out is not None:
        found = {"schema": 1, "environment": environment(where), "ranks": measured}
        write_json(out / "comm.json", found)
        from svilm_fast.bench.comm.plot import draw

        draw(measured, out / "comm.png")
        print(f"wrote {out / 'comm.json'} and {out / 'comm.png'}")
    if not all(row["bytes_equal"] for one in measured for row in one["steps"]):
        raise typer.Exit(1)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 2:
        raise UserError(f"--ranks {text!r} must be numbers of 2 or more, such as 2,4,8")
    return counts


def measure(world_size: int, device: str, repeats: int) -> dict[str, Any]:
    """Timings, fits and checked loss steps for one number of ranks."""
    task = {
        "device": device,
        "sizes": SIZES,
        "repeats": repeats,
        "losses": [[f"training.global_batch={batch}"] for batch in BATCHES],
    }
    found = run_ranks(WORKER, world_size, json.dumps(task))[0]
    fits = {
        kind: fit_line(
            (row["bytes"], row["seconds"]) for row in found["timed"] if row["kind"] == kind
        )
        for kind in ("all_gather", "reduce_scatter", "all_reduce")
    }
    return {
        "world_size": world_size,
        "timed": found["timed"],
        "fits": {kind: {"alpha": fit.alpha, "beta": fit.beta} for kind, fit in fits.items()},
        "steps": [_step(world_size, entry, fits) for entry in found["losses"]],
    }


def _step(world_size: int, entry: dict[str, Any], fits: dict[str, LinearFit]) -> dict[str, Any]:
    config = load_config("demo", entry["overrides"])
    predicted: dict[str, float] = {}
    seconds = 0.0
    for sent in loss_traffic(workload_of(config, world_size, on_gpu=False)):
        predicted[sent.kind] = predicted.get(sent.kind, 0.0) + sent.size
        seconds += sent.calls * fits[sent.kind].seconds(sent.size / sent.calls)
    return {
        "global_batch": config.training.global_batch,
        "bytes_predicted": predicted,
        "bytes_counted": entry["bytes"],
        "bytes_equal": predicted == entry["bytes"],
        "seconds_predicted": seconds,
        "seconds_measured": entry["seconds"],
    }


def lines(measured: list[dict[str, Any]]) -> list[str]:
    """Markdown tables: the fits, then the steps."""
    fits = [_fit_cells(one["world_size"], *fit) for one in measured for fit in one["fits"].items()]
    steps = [_step_cells(one["world_size"], row) for one in measured for row in one["steps"]]
    return [
        *markdown_table(FIT_COLUMNS, fits, right={*FIT_COLUMNS} - {"collective"}),
        "",
        *markdown_table(STEP_COLUMNS, steps, right=STEP_COLUMNS),
    ]


def _fit_cells(world_size: int, kind: str, fit: dict[str, float]) -> list[object]:
    rate = f"{1e-6 / fit['beta']:,.0f}" if fit["beta"] else "not limiting"
    return [world_size, kind, f"{fit['alpha'] * 1e6:,.0f}", rate]


def _step_cells(world_size: int, row: dict[str, Any]) -> list[object]:
    predicted, counted = (sum(row[f"bytes_{name}"].values()) for name in ("predicted", "counted"))
    seconds, measured = row["seconds_predicted"], row["seconds_measured"]
    return [
        world_size,
        row["global_batch"],
        f"{predicted:,.0f}",
        f"{counted:,}",
        f"{seconds * 1e3:.2f}",
        f"{measured * 1e3:.2f}",
        f"{measured / seconds:.2f}",
    ]
