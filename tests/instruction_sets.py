"""The numeric tests under other instruction sets and seeds: `make instruction-sets`.

Every library that computes on the CPU (ATen, oneDNN, OpenBLAS, MKL, numpy) is limited to an
instruction set, and the seeds of the inputs are shifted. For each pair of both, a table shows what
passed and the largest share of its bar that a comparison used. A share above 1 fails the test.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["kernels", "models", "objectives", "distributed", "evaluation", "report", "train"]
# The folders in which a bar was once exceeded; CI runs these.
SHORT = [
    "kernels/grounding/test_numerics.py",
    "kernels/grouping/test_fused.py",
    "kernels/infonce/test_distributed.py",
    "kernels/infonce/test_fused_values.py",
    "kernels/infonce/test_upstream.py",
    "models",
    "objectives",
]

_AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
LIMITS = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": f"AVX2 FMA3 {_AVX512}",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": _AVX512,
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "OPENBLAS_CORETYPE": "SkylakeX",
    },
}
NEEDED = {"default": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw"}}


@dataclass(frozen=True)
class Outcome:
    code: int
    summary: str
    failed: list[str]
    worst: list[tuple[float, str]]


def cpu_flags() -> set[str]:
    """The processor's instruction sets, as Linux lists them (empty elsewhere)."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", path.read_text(), re.M) if path.exists() else None
    return set(found[1].split()) if found else set()


def known_to_numpy(limit: dict[str, str]) -> dict[str, str]:
    """The limits without features on which this numpy does not dispatch (it would warn)."""
    import numpy as np

    dispatched = set(np._core._multiarray_umath.__cpu_dispatch__)
    wanted = limit.get("NPY_DISABLE_CPU_FEATURES", "").split()
    return limit | {"NPY_DISABLE_CPU_FEATURES": " ".join(x for x in wanted if x in dispatched)}


def run(name: str, seed: int, paths: list[str], jobs: int) -> Outcome:
    """One pass of the tests in `paths` under one instruction set with one shift of the seeds."""
    with tempfile.TemporaryDirectory() as records:
        environment = os.environ | known_to_numpy(LIMITS[name])
        environment |= {"SVILM_TEST_MARGINS": records, "SVILM_TEST_SEED": str(seed)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests/every_process"), str(ROOT)])
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rfE",
            "-n",
            str(jobs),
            "--dist",
            "loadfile",
        ]
        command += [f"tests/{path}" for path in paths]
        if seed:
            # The regimes that catch planted bugs were chosen with their seeds.
            command += ["-k", "not planted and not caught"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        used: dict[str, float] = {}
        for record in Path(records).glob("*.json"):
            for test, ratio in json.loads(record.read_text()).items():
                used[test] = max(used.get(test, 0.0), ratio)
    lines = done.stdout.strip().splitlines() or [done.stderr[-2000:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    worst = sorted(((ratio, test) for test, ratio in used.items()), reverse=True)
    return Outcome(done.returncode, lines[-1].strip("= "), failed, worst)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--seeds", type=int, default=3, help="shifts of the seeds: 0, 1, ...")
    parser.add_argument("--only", nargs="+", help="folders of tests/; default: all numeric")
    parser.add_argument("--short", action="store_true", help="few folders, one shift (CI)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--show", type=int, default=5, help="print the N closest to their bars")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    given = parser.parse_args()
    flags, table, worst = cpu_flags(), [], {}
    sets = [name for name in given.sets if NEEDED[name] <= flags]
    for name in given.sets:
        if name not in sets:
            print(f"{name}: this processor does not have it; skipped", flush=True)
            continue
        if given.short and name == sets[-1] and len(sets) > 1:
            print(f"{name}: the widest of this processor, which `make test` runs", flush=True)
            continue
        # `make test` already runs shift 0.
        for seed in [1] if given.short else range(given.seeds):
            found = run(name, seed, given.only or (SHORT if given.short else FOLDERS), given.jobs)
            largest = found.worst[0][0] if found.worst else 0.0
            print(
                f"{name}, seed {seed}: {found.summary}; largest share of a bar: {largest:.2f}",
                flush=True,
            )
            for line in found.failed:
                print(f"  {line}", flush=True)
            row = {"set": name, "seed": seed, "summary": found.summary, "failed": found.failed}
            table.append(row | {"code": found.code, "largest": largest})
            for ratio, test in found.worst:
                worst[test] = max(worst.get(test, 0.0), ratio)
    nearest = sorted(((ratio, test) for test, ratio in worst.items()), reverse=True)
    for ratio, test in nearest[: given.show]:
        print(f"  {ratio:.2f} of its bar: {test}")
    if given.out:
        shown = [{"test": test, "used": round(ratio, 3)} for ratio, test in nearest[:30]]
        given.out.write_text(json.dumps({"runs": table, "nearest": shown}, indent=1) + "\n")
    return int(not table or any(row["code"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
