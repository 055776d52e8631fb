"""Runs the host cases under Callgrind and reads the instructions of each."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from svilm_fast.bench.counts.requests import supported
from svilm_fast.bench.environment import ROOT

TIMEOUT_S = 900
# What changes a count without a change of the code: hash order, threads, a warm compiler cache.
_STEADY = {
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")


class Unavailable(Exception):
    """Instructions cannot be counted here; says what is missing."""


def why_unavailable() -> str | None:
    """What is missing, or None."""
    if not supported():
        return "instructions are counted on x86-64 Linux only"
    missing = [tool for tool in ("valgrind", "setarch") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: install valgrind and util-linux"
    return None


def count_instructions(pattern: str = "*") -> tuple[dict[str, int], dict[str, str]]:
    """Instructions of one call of each matching case, and the facts that they depend on.

    Raises `Unavailable` where a tool is missing, and RuntimeError where the run fails.
    """
    missing = why_unavailable()
    if missing is not None:
        raise Unavailable(missing)
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [
                *("setarch", "-R", "valgrind", "--tool=callgrind", "--instr-atstart=no"),
                f"--callgrind-out-file={folder}/counts",
                *(sys.executable, "-m", "svilm_fast.bench.counts.host", pattern),
            ],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k in _KEPT} | _STEADY,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        if result.returncode != 0:
            raise RuntimeError(f"Callgrind run failed: {result.stderr.strip()[-400:]}")
        told = json.loads(result.stdout.strip().splitlines()[-1])
        totals: dict[str, int] = {}
        for path in Path(folder).glob("counts.*"):
            name, total = _read_dump(path)
            # What varies between rounds only adds: a table that grows, a buffer that is moved.
            totals[name] = min(total, totals.get(name, total))
    if not told["valgrind"] or totals.keys() != set(told["names"]):
        raise RuntimeError(f"Callgrind counted {sorted(totals)}, the run {sorted(told['names'])}")
    version = subprocess.run(
        ["valgrind", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    counts = {name: round(totals[name] / told["calls"]) for name in told["names"]}
    return counts, told["facts"] | {"valgrind": version}


def _read_dump(path: Path) -> tuple[str, int]:
    text = path.read_text(errors="replace")
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
    total = re.search(r"^totals: (\d+)", text, re.MULTILINE)
    if name is None or total is None:
        raise RuntimeError(f"{path.name} is no Callgrind dump of a named block")
    return name[1].strip(), int(total[1])
