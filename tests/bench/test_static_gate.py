"""The gate turns red for a spill, a lost alignment and a matrix that is written out.

That the kernels as they are pass is what `make static-check` shows.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GROUNDING = ("grounding", "scores G=32 K=2 D=256")
INFONCE = ("infonce", "bf16 D512 B8192")
ODD_STRIDE = "[None, :] * (D - 1) +"
COLUMN_SUM = "        column_sum += tl.sum(tl.reshape(power"
STORE = "        tl.store(row_sums + row[:, None] * columns + column[None, :], power)\n"
PLANTS = {
    "spill": (
        *GROUNDING,
        "kernels/grounding/fused/forward.py",
        {"num_warps=tile.warps": "num_warps=1"},
        "[spills]",
    ),
    # Four warps make the group that wgmma needs.
    "lost wgmma": (
        "infonce",
        "bf16 D512 rank 3 of 8",
        "kernels/infonce/fused/layout.py",
        {'"num_warps": self.warps': '"num_warps": 2'},
        "[tensor_cores] half-precision product without HGMMA",
    ),
    "lost alignment": (
        *GROUNDING,
        "kernels/grounding/fused/forward.py",
        {"[:, None] * D + depth": "[:, None] * (D - 1) + depth", "[None, :] * D +": ODD_STRIDE},
        "[alignment]",
    ),
    "matrix stored": (
        *INFONCE,
        "kernels/infonce/fused/forward.py",
        {COLUMN_SUM: STORE + COLUMN_SUM},
        "loop_stores 1 -> ",
    ),
}


def check(folder: Path, op: str, variant: str) -> subprocess.CompletedProcess:
    """`svilm bench static --check` of one variant in an uninstalled copy of the project."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", "from svilm_fast.cli import main; main()"]
    return subprocess.run(
        [*command, "bench", "static", "--check", "--op", op, "--variant", variant],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def project(tmp_path):
    for name in ("kernels", "svilm_fast", "train", "bench", "configs"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_regression_turns_the_gate_red(project, name):
    op, variant, path, replacements, complaint = PLANTS[name]
    source = (project / path).read_text()
    for old, new in replacements.items():
        assert old in source, f"{old!r} is not in {path}: update the test"
        source = source.replace(old, new)
    (project / path).write_text(source)
    result = check(project, op, variant)
    assert result.returncode == 1, result.stdout + result.stderr
    assert complaint in result.stdout
