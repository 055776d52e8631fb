"""Runs the op benchmark; needs nothing but PyTorch and Triton.

    python -m svilm_fast.bench.ops.run --out bench/results

writes one JSON for each device and prints a table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from svilm_fast.bench.ceilings import Ceilings, measure_ceilings
from svilm_fast.bench.environment import ROOT, environment, gpu_state
from svilm_fast.bench.ops.measure import measure_case
from svilm_fast.bench.ops.record import Record
from svilm_fast.kernels.registry import Op, ops

RESULTS = ROOT / "bench" / "results"


def benchmark(
    chosen: Iterable[Op],
    dtype: torch.dtype,
    device: torch.device,
    ceilings: Ceilings,
    *,
    budget_s: float,
    deadline_s: float,
    cases: list[str] | None = None,
) -> list[Record]:
    """Measure every case of the chosen ops; cases past the deadline are records too.

    On a GPU the fused paths of all cases come first: a run cut short has every figure of ours.
    """
    records: list[Record] = []
    start = time.monotonic()
    passes: list[tuple[str, Callable[[str], bool]]] = [("others", lambda name: name != "fused")]
    if device.type == "cuda":
        passes.insert(0, ("fused", lambda name: name == "fused"))
    pairs = [(op, case) for op in chosen for case in op.cases if not cases or case in cases]
    for provider, only in passes:
        for op, case in pairs:
            if time.monotonic() - start > deadline_s:
                records.append(_late(op, case, dtype, provider))
                continue
            for record in measure_case(
                op, case, dtype, device, ceilings, budget_s=budget_s, only=only
            ):
                records.append(record)
                print(line(record), flush=True)
    return records


def line(record: Record) -> str:
    """One measurement as a line of text."""
    head = f"{record.op:10} {record.case:28} {record.provider:10} {record.direction:9}"
    if record.status != "ok":
        return f"{head} {record.status[:90]}"
    memory = (
        "" if record.peak_extra_bytes is None else f"{record.peak_extra_bytes / 2**20:10.1f} MiB"
    )
    host = "" if record.host_us is None else f"  host {record.host_us:.0f} us"
    return (
        f"{head} {record.median_ms:10.3f} ms  product {record.product_fraction:6.1%}"
        f"  copy {record.copy_fraction:6.1%} {memory}  error {record.error:.1e}{host}"
    )


def write(records: list[Record], ceilings: Ceilings, device: torch.device, out: Path) -> Path:
    """Write the records with the run's environment as `<out>/<device>/ops.json`."""
    facts = environment(device)
    slug = re.sub(r"[^a-z0-9]+", "-", str(facts["gpu"] or f"cpu-{facts['machine']}").lower())
    path = out / slug.strip("-") / "ops.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "environment": facts | {"gpu_state_after": gpu_state()},
        "ceilings": asdict(ceilings),
        "records": [asdict(record) | {"id": record.id} for record in records],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all measured, 1 a provider of ours failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--op", action="append", help="only this op (repeat)")
    parser.add_argument("--case", action="append", help="only this case (repeat)")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds for each measurement")
    parser.add_argument("--deadline", type=float, default=300, help="seconds for all cases")
    options = parser.parse_args(arguments)
    registered = ops()
    unknown = sorted(set(options.op or []) - set(registered))
    if unknown:
        parser.error(f"unknown op {', '.join(unknown)}; registered: {', '.join(registered)}")
    device = torch.device(options.device)
    name = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    ceilings = measure_ceilings(device)
    print(
        f"ceilings of this run: product {ceilings.product_flops / 1e12:.1f} TFLOP/s, "
        f"copy {ceilings.copy_bytes / 1e9:.0f} GB/s"
    )
    records = benchmark(
        [registered[op] for op in options.op or registered],
        getattr(torch, name),
        device,
        ceilings,
        budget_s=options.budget,
        deadline_s=options.deadline,
        cases=options.case,
    )
    print(f"wrote {write(records, ceilings, device, options.out)}")
    own = {"fused", "reference"} if device.type == "cuda" else {"reference"}
    failed = [r for r in records if r.status != "ok" and r.provider in own]
    for record in failed:
        print(f"no figure: {record.id}: {record.status}", file=sys.stderr)
    return 1 if failed else 0


def _late(op: Op, case: str, dtype: torch.dtype, provider: str) -> Record:
    return Record(
        op=op.name,
        case=case,
        shape=dict(op.cases[case]),
        dtype=str(dtype).split(".")[1],
        provider=provider,
        direction="both",
        status="skipped: the deadline of the run had passed",
    )


if __name__ == "__main__":
    sys.exit(main())
