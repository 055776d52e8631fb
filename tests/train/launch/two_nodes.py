"""`python -m tests.train.launch.two_nodes`: a run on two nodes equals the run on one.

The small recipe trains on the rendered world once on one node and once on two nodes with addresses
and networks of their own (`nodes`), with as many ranks. Losses, gradient norms and weights must be
the same bit for bit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from safetensors.torch import load_file

from svilm_fast.core.errors import UserError
from svilm_fast.core.terminal import print
from svilm_fast.data.world import render_world
from svilm_fast.train.config.small_model import SMALL_MODEL
from svilm_fast.train.environment import environment_without_launcher, free_port
from svilm_fast.train.run_app import run_app
from tests.train.launch.nodes import (
    ADDRESSES,
    DEVICE,
    LOOPBACK_ADDRESSES,
    Node,
    two_nodes,
    why_not_isolated,
)

COMPARED = ("loss", "gradient_norm")
SMALL = (
    *SMALL_MODEL,
    "training.global_batch=8",
    "logging.every_steps=1",
    "logging.tensorboard=false",
    "evaluation.at_end=false",
    "report.at_end=false",
    "distributed.timeout_seconds=60",
)


def torchrun_command(addresses: Sequence[str], node: int, ranks: int, port: int) -> list[str]:
    """Return torchrun on one of the nodes; the first hosts the rendezvous.

    `is_host` and `local-addr` say what torchrun would otherwise guess from the host's name.
    """
    own = [sys.executable, "-m", "svilm_fast.train.launch.torchrun"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{addresses[0]}:{port}"]
    meeting += ["--rdzv-id", "two-nodes", "--rdzv-conf", f"is_host={int(node == 0)}"]
    size = ["--nnodes", str(len(addresses)), "--nproc-per-node", str(ranks)]
    return [*own, *size, *meeting, "--local-addr", addresses[node], "-m"]


def deepspeed_command(
    addresses: Sequence[str], node: int, ranks: int, port: int, folder: Path
) -> list[str]:
    """Return the `deepspeed` launcher on one of the nodes of a hostfile, without ssh."""
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{address} slots={ranks}\n" for address in addresses))
    own = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
    place = ["--no_ssh", "--node_rank", str(node), "--master_addr", addresses[0]]
    return [*own, *place, "--master_port", str(port), "--log_level", "error", "--module"]


def environment_of(device: str | None) -> dict[str, str]:
    """Return this environment for the ranks of a node whose network is behind `device`."""
    named = {"GLOO_SOCKET_IFNAME": device} if device else {}
    fixed = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return environment_without_launcher() | fixed | named


def wait_for(nodes: Sequence[Node], folder: Path, deadline: float) -> None:
    """Wait until all nodes are done; UserError with the end of its output where one fails."""
    while any(node.process.poll() is None for node in nodes):
        failed = any(node.process.poll() not in (None, 0) for node in nodes)
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    codes = [node.process.poll() for node in nodes]
    if any(codes):
        time.sleep(1.0)  # for the other node to say the same
    if codes != [0] * len(nodes):
        outputs = "\n".join((folder / f"node_{i}.log").read_text()[-3000:] for i in (0, 1))
        raise UserError(f"the nodes ended with {codes} (None: too slow); their output:\n{outputs}")


def records_of(run: Path) -> list[dict[str, float]]:
    """Return step and compared figures of every record of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key == "step" or key.startswith(COMPARED)}
        for line in lines
    ]


def difference(first: Path, second: Path) -> float:
    """Return the largest absolute difference between the weights of two runs."""
    weights = [load_file(run / "portable" / "model.safetensors") for run in (first, second)]
    if weights[0].keys() != weights[1].keys():
        raise UserError(f"{first} and {second} hold different parameters")
    return max(
        float((value.double() - weights[1][name].double()).abs().max())
        for name, value in weights[0].items()
    )


def compare(
    folder: Path,
    *,
    ranks: int = 1,
    launcher: str = "torchrun",
    steps: int = 4,
    isolated: bool = True,
    limit: float = 300.0,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Train on one node and on two, and return what came out.

    ranks: per node. limit: seconds for each of the two runs. The result holds the addresses, the
    bytes that crossed the cable, the records of both runs and the largest difference of weights.
    """
    deadline = time.monotonic() + limit
    world = folder / "world"
    render_world(world, train=24, val=6, test=6, size=32, frames=8, workers=1, progress=False)
    data = [f"data.{split}={world / split}" for split in ("train", "val", "test")]
    settings = ["--config", "demo", *SMALL, *data, f"training.steps={steps}", *overrides]
    one, two = folder / "one_node", folder / "two_nodes"

    def program(run: Path) -> list[str]:
        return ["svilm_fast.train.pretrain", *settings, f"run.dir={run}"]

    alone = torchrun_command(["127.0.0.1"], 0, 2 * ranks, free_port())
    with (folder / "one_node.log").open("w") as output:
        subprocess.run(
            [*alone, *program(one)],
            env=environment_of(None),
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=deadline - time.monotonic(),
            check=True,
        )
    addresses, device = (ADDRESSES, DEVICE) if isolated else (LOOPBACK_ADDRESSES, "lo")
    port = free_port()
    if launcher == "torchrun":
        starts = [torchrun_command(addresses, node, ranks, port) for node in (0, 1)]
    else:
        starts = [deepspeed_command(addresses, node, ranks, port, folder) for node in (0, 1)]
    commands = [[*start, *program(two)] for start in starts]
    environments = [environment_of(device)] * 2
    with two_nodes(commands, folder, environments, isolated=isolated) as nodes:
        print(f"nodes: processes {[node.process.pid for node in nodes]}", flush=True)
        wait_for(nodes, folder, time.monotonic() + limit)
    # The cable goes with the node that ends first, so the other one may have nothing to say.
    received = [count for node in nodes if (count := node.received_bytes()) is not None]
    return {
        "launcher": launcher,
        "isolated": isolated,
        "addresses": list(addresses),
        "ranks_per_node": ranks,
        "received_bytes": max(received, default=None),
        "torch": torch.__version__,
        "one_node": records_of(one),
        "two_nodes": records_of(two),
        "largest_weight_difference": difference(one, two),
    }


def trial(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings of the small run")
    ] = None,
    ranks_per_node: Annotated[int, typer.Option(min=1, help="ranks on each node")] = 1,
    launcher: Annotated[
        Literal["torchrun", "deepspeed"], typer.Option(help="what starts the ranks of a node")
    ] = "torchrun",
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps")] = 4,
    limit: Annotated[
        float, typer.Option(min=1, max=1e6, help="seconds for each of the two runs")
    ] = 300.0,
    loopback: Annotated[
        bool, typer.Option("--loopback", help="two agents on loopback, no namespaces")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="keep worlds, runs and logs here (default: nothing)")
    ] = None,
) -> int:
    """Train on one node and on two nodes with their own networks, and compare bit for bit."""
    reason = "--loopback was given" if loopback else why_not_isolated()
    if reason is not None:
        print(f"no network namespaces ({reason}): two agents on loopback", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = compare(
            folder.absolute(),
            ranks=ranks_per_node,
            launcher=launcher,
            steps=steps,
            isolated=reason is None,
            limit=limit,
            overrides=overrides or (),
        )
        if out is not None:
            (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    for record in result["two_nodes"]:
        if "loss" in record:
            print(f"step {record['step']} | loss {record['loss']:.6f}")
    print(f"{launcher}, {' and '.join(result['addresses'])}, {ranks_per_node} ranks each")
    if result["isolated"]:
        print(f"received over the cable: {result['received_bytes']} bytes")
    print(f"largest difference of a weight: {result['largest_weight_difference']:g}")
    same = result["one_node"] == result["two_nodes"] and not result["largest_weight_difference"]
    print("one node and two nodes: " + ("the same bit for bit" if same else "NOT the same"))
    return 0 if same else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the trial; returns the exit code."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(trial)
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(main())
