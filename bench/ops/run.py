"""Runs the op benchmark; needs nothing but PyTorch and Triton.

    python -m svilm_fast.bench.ops.run --out bench/results

writes one JSON for each device and prints a line for each figure.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from svilm_fast.bench.ceilings import measure_ceilings
from svilm_fast.bench.environment import ROOT, environment, slug
from svilm_fast.bench.outcomes import Outcome
from svilm_fast.bench.peers import PEERS
from svilm_fast.bench.run.file import write_json
from svilm_fast.bench.run.runner import result, run
from svilm_fast.bench.run.text import failures, line, status_text
from svilm_fast.bench.suites import ops as suite
from svilm_fast.kernels.registry import ops

RESULTS = ROOT / "bench" / "results"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: an `Outcome`; a peer without a figure is no failure of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--op", action="append", help="only this op (repeat)")
    parser.add_argument("--case", action="append", help="only this case (repeat)")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds for each measurement")
    parser.add_argument("--deadline", type=float, default=300, help="seconds for all cases")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.op or []) - set(ops()))
    if unknown:
        parser.error(f"unknown op {', '.join(unknown)}; registered: {', '.join(ops())}")
    device = torch.device(options.device)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    chosen = [
        benchmark
        for benchmark in suite.declared(device, dtype)
        if (not options.op or benchmark.parts["name"] in options.op)
        and (not options.case or benchmark.parts["case"] in options.case)
    ]
    if not chosen:
        parser.error(f"no such case on {device.type}: {', '.join(options.case)}")
    facts = environment(device)
    ceilings = measure_ceilings(device)
    print(
        f"ceilings of this run: product {ceilings.product_flops / 1e12:.1f} TFLOP/s, "
        f"copy {ceilings.copy_bytes / 1e9:.0f} GB/s"
    )
    path = options.out / slug(facts) / "ops.json"
    records = []
    for record in run(
        chosen, device, ceilings, budget_s=options.budget, deadline_s=options.deadline
    ):
        records.append(record)
        write_json(path, result(records, facts, device, ceilings, complete=False))
        print(line(record), flush=True)
    write_json(path, result(records, facts, device, ceilings))
    print(f"wrote {path}")
    own = [record for record in failures(records) if record.provider not in PEERS]
    for record in own:
        print(f"no figure: {record.id}: {status_text(record)}", file=sys.stderr)
    if own:
        return int(Outcome.FAILED)
    return int(Outcome.OK if any(record.measured for record in records) else Outcome.MISSING)


if __name__ == "__main__":
    sys.exit(main())
