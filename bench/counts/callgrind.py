"""Runs the host cases under Callgrind and reads the instruction count of each."""

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
# Fixes what changes a count without a code change: hash order, threads, bytecode files.
_STEADY = {
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")


class Unavailable(Exception):
    """Instructions cannot be counted here; the message names the missing tool."""


def why_unavailable() -> str | None:
    """The reason why instructions cannot be counted here, or None."""
    if not supported():
        return "instructions are counted on x86-64 Linux only"
    missing = [tool for tool in ("valgrind", "setarch") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: install valgrind and util-linux"
    return None


def count_instructions(pattern: str = "*") -> tuple[dict[str, int], dict[str, str]]:
    """Instructions per call of each matching case, and the facts that they depend on.

    Raises `Unavailable` if a tool is missing, and RuntimeError if the run fails.
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
        reported = json.loads(result.stdout.strip().splitlines()[-1])
        totals: dict[str, int] = {}
        for path in Path(folder).glob("counts.*"):
            name, total = _read_dump(path)
            # Variation between rounds only adds instructions: a table grows, a buffer moves.
            totals[name] = min(total, totals.get(name, total))
    if not reported["valgrind"] or totals.keys() != set(reported["names"]):
        raise RuntimeError(
            f"Callgrind counted {sorted(totals)}, the run {sorted(reported['names'])}"
        )
    version = subprocess.run(
        ["valgrind", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    counts = {name: round(totals[name] / reported["calls"]) for name in reported["names"]}
    return counts, reported["facts"] | {"valgrind": version}


def _read_dump(path: Path) -> tuple[str, int]:
    text = path.read_text(errors="replace")
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
    total = re.search(r"^totals: (\d+)", text, re.MULTILINE)
    if name is None or total is None:
        raise RuntimeError(f"{path.name} is not a Callgrind dump of a named block")
    return name[1].strip(), int(total[1])
