"""Runs the op benchmark; needs only PyTorch and Triton.

    python -m svilm_fast.bench.gpu.ops_run --out bench/results

writes one JSON for each device and prints a line for each figure.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from svilm_fast.bench.ceilings import Ceilings, measure_ceilings
from svilm_fast.bench.environment import ROOT, environment, slug
from svilm_fast.bench.exit_codes import ExitCode
from svilm_fast.bench.peers import is_peer
from svilm_fast.bench.run.file import Results, check_replaceable, read_results
from svilm_fast.bench.run.record import Record
from svilm_fast.bench.run.runner import PAST_DEADLINE, blank, run_into
from svilm_fast.bench.run.text import failures, gluon_against_fused, line, status_text
from svilm_fast.bench.suites import ops as suite
from svilm_fast.bench.suites.benchmark import Benchmark
from svilm_fast.bench.units import limited_time
from svilm_fast.core.terminal import print
from svilm_fast.kernels.registry import ops

RESULTS = ROOT / "bench" / "results"
STARTING = "measuring "


def main(arguments: list[str] | None = None) -> int:
    """Exit status: an `ExitCode`; a peer without a figure does not count as a failure.

    Ends with a traceback if the GPU became unusable for the process (`DeviceLost`).
    """
    start = time.monotonic()
    options = _options(arguments)
    device = torch.device(options.device)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    chosen = [
        benchmark
        for benchmark in suite.declared(device, dtype)
        if (not options.op or benchmark.parts["name"] in options.op)
        and (not options.case or benchmark.parts["case"] in options.case)
    ]
    if not chosen:
        _refuse(f"no such case on {device.type}: {', '.join(options.case)}", ExitCode.USAGE)
    facts = environment(device)
    path = options.out / slug(facts) / "ops.json"
    check_replaceable(path)
    earlier = _earlier(path, facts["fingerprint"]) if options.resume else None
    ceilings = Ceilings(**earlier.ceilings) if earlier else measure_ceilings(device)
    print(ceilings.describe())
    records: list[Record] = list(earlier.records.values()) if earlier else []
    known = {record.id for record in records}
    why = {id: text for id, text in options.without if id not in known}
    for one in chosen:
        if one.id in why:
            left_out = blank(one, f"failed: {why[one.id]}")
            records.append(replace(left_out, position=len(records)))
    known |= why.keys()
    if earlier is None:
        # So that a process that resumes this run never finds the figures of an older one.
        path.unlink(missing_ok=True)
    records = run_into(
        path,
        [benchmark for benchmark in chosen if benchmark.id not in known],
        device,
        ceilings,
        facts,
        budget_s=options.budget,
        deadline_s=options.deadline - (time.monotonic() - start),
        earlier=records,
        starting=_announce if options.announce else lambda _: None,
        done=_tell,
    )
    print(f"wrote {path}")
    for text in gluon_against_fused(records):
        print(text)
    # The reference is measured for comparison only: it may miss the deadline.
    own = [
        record
        for record in failures(records)
        if not is_peer(record.provider)
        and (record.provider == "fused" or record.status != PAST_DEADLINE)
    ]
    for record in own:
        print(f"no figure: {record.id}: {status_text(record)}", file=sys.stderr)
    if own:
        return int(ExitCode.FAILED)
    return int(ExitCode.OK if any(record.measured for record in records) else ExitCode.MISSING)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--op", action="append", help="only this op (repeat)")
    parser.add_argument("--case", action="append", help="only this case (repeat)")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--budget", type=limited_time, default=0.3, help="seconds for each measurement"
    )
    parser.add_argument(
        "--deadline", type=limited_time, default=300, help="seconds for the whole run"
    )
    parser.add_argument("--resume", action="store_true", help="resume an unfinished file")
    parser.add_argument(
        "--without",
        action="append",
        nargs=2,
        default=[],
        metavar=("ID", "WHY"),
        help="record this benchmark as failed with that reason (repeat)",
    )
    parser.add_argument("--announce", action="store_true", help="print each id in advance")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.op or []) - set(ops()))
    if unknown:
        parser.error(f"unknown op {', '.join(unknown)}; registered: {', '.join(ops())}")
    return options


def _announce(benchmark: Benchmark) -> None:
    print(f"{STARTING}{benchmark.id}", flush=True)


def _tell(record: Record) -> None:
    if record.status != PAST_DEADLINE:
        print(line(record), flush=True)


def _refuse(text: str, exit_code: ExitCode) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(int(exit_code))


def _earlier(path: Path, fingerprint: str) -> Results | None:
    """The file of an unfinished run of this machine; None without a file."""
    if not path.is_file():
        return None
    written = read_results(path)
    if written.fingerprint != fingerprint:
        _refuse(f"{path} is of another machine or versions: drop --resume", ExitCode.INCOMPARABLE)
    if written.complete:
        _refuse(f"{path} is of a finished run: drop --resume", ExitCode.USAGE)
    return written


if __name__ == "__main__":
    sys.exit(main())
