"""`svilm plan`: the requirements of a recipe on a number of ranks, and what `auto` becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from svilm_fast.core.earlier_result import check_replaceable
from svilm_fast.core.errors import EXIT_BAD_INPUT, UserError
from svilm_fast.core.terminal import print
from svilm_fast.train.config.options import ConfigName, Overrides
from svilm_fast.train.plan.devices import CPU, Device, device_of, parse_bytes
from svilm_fast.train.plan.links import NETWORKS, Links, links_of

# Each kind of output (tables, JSON, text) contains one of these; --out replaces no other file.
SIGNS = ("Predictions for `", '"executed_flops"', "memory of a rank\n")
DEFAULT_RECIPE = "svilm_base"


def plan(
    overrides: Overrides = None,
    config: ConfigName = None,
    gpus: Annotated[int, typer.Option(min=1, help="total number of ranks")] = 1,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="number of machines; default: 8 ranks on each")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="a100-80, h100, h200 or b200")] = None,
    memory: Annotated[str | None, typer.Option(help="memory of a rank, such as 80GiB")] = None,
    network: Annotated[
        str | None, typer.Option(help=f"adapter of a GPU: {', '.join(NETWORKS)}")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="tables over ranks and batches, as Markdown")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="write to this file instead of printing")] = None,
) -> None:
    """Print parameters, FLOPs, memory by ZeRO stage, and the settings that fit, with reasons.

    Without --config the recipe is svilm_base. Everything set to `auto` is decided as a run would
    decide it. Exit status 2 if nothing fits.
    """
    from svilm_fast.train.config.load import load_config
    from svilm_fast.train.plan import report
    from svilm_fast.train.plan.workload import workload_of

    settings = load_config(config or DEFAULT_RECIPE, overrides or [])
    device, links = _device_and_links(gpu, memory, network, gpus, nodes)
    if scaling:
        from svilm_fast.train.plan.scaling import scaling_tables

        _write(scaling_tables(settings, device, links), out)
        return
    if gpus % links.per_node and gpus > links.per_node:
        raise UserError(f"--gpus {gpus} cannot be spread evenly over nodes of {links.per_node}")
    workload = workload_of(settings, gpus, on_gpu=device.on_gpu)
    made = report.make_plan(workload, device, links, device.memory)
    _write(json.dumps(report.as_json(made), indent=2) if as_json else report.text(made), out)
    if made.problem is not None:
        raise typer.Exit(EXIT_BAD_INPUT)


def _device_and_links(
    gpu: str | None, memory: str | None, network: str | None, gpus: int, nodes: int | None
) -> tuple[Device, Links]:
    if network is not None and network not in NETWORKS:
        raise UserError(f"unknown network {network!r}: use one of {', '.join(NETWORKS)}")
    if nodes is not None and gpus % nodes:
        raise UserError(f"--gpus {gpus} cannot be spread evenly over --nodes {nodes}")
    per_node = gpus // nodes if nodes else 8
    if gpu == "cpu":
        if memory is None:
            raise UserError("--gpu cpu needs --memory, such as --memory 8GiB")
        device = Device("cpu", parse_bytes(memory), CPU.peak, CPU.nvlink, CPU.network, False)
        return device, Links("loopback", per_node, CPU.nvlink, CPU.network)
    known = device_of(gpu or "h100")
    size = known.memory if memory is None else parse_bytes(memory)
    device = Device(known.name, size, known.peak, known.nvlink, known.network)
    return device, links_of(device, network, per_node)


def _write(written: str, out: Path | None) -> None:
    if out is None:
        print(written)
        return
    check_replaceable(out, *SIGNS)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(written.rstrip() + "\n", encoding="utf-8")
    print(f"wrote {out}")
