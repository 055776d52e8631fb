"""The gate turns red for a spill, a lost alignment, a matrix that is written out and slower tiles.

That the kernels as they are pass is what `make static-check` shows.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GROUNDING = ("grounding", "scores G=64 K=4 D=512")
INFONCE = ("infonce", "bf16 D512 B8192")
ODD_STRIDE = "[None, :] * (D - 1) +"
COLUMN_SUM = "        column_sum += tl.sum(tl.reshape(power"
STORE = "        tl.store(row_sums + row[:, None] * columns + column[None, :], power)\n"
PLANTS = {
    "spill": (
        *GROUNDING,
        "kernels/grounding/fused/forward.py",
        {'"num_warps": tile.warps': '"num_warps": 1'},
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
        "kernels/grounding/fused/tiles.py",
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

# What the structural model sees: the column that grows or, of copies, falls.
SLOWER = {
    "lost prefetch": (
        "grouping",
        "target bfloat16 forward",
        "kernels/grouping/fused/forward.py",
        {"if not BRANCHES or there[2]:": "if WIDTH > 0:"},
        "waited_clocks",
    ),
    "repeated product": (
        "grouping",
        "target bfloat16 forward",
        "kernels/grouping/fused/forward.py",
        {"if not BRANCHES or there[block % 2]:": "if WIDTH > 0:"},
        "products_percent",
    ),
    "colder tile start": (
        "infonce",
        "bf16 D512 rank 3 of 8",
        "kernels/infonce/fused/backward.py",
        {"FLATTEN=tile.blocks > 0": "FLATTEN=False"},
        "waited_clocks",
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


def check_planted(project, op, variant, path, replacements):
    """What the gate says about one variant of a copy in which `replacements` are made."""
    source = (project / path).read_text()
    for old, new in replacements.items():
        assert old in source, f"{old!r} is not in {path}: update the test"
        source = source.replace(old, new)
    (project / path).write_text(source)
    result = check(project, op, variant)
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_regression_turns_the_gate_red(project, name):
    *plant, complaint = PLANTS[name]
    assert complaint in check_planted(project, *plant)


@pytest.mark.slow
def test_roles_one_after_the_other_turn_the_gate_red(project):
    """A group passes its turn on after its powers and sums, instead of before."""
    turn = "    mbarrier.arrive(turns.index(1 - GROUP), count=1)\n"
    ring = project / "kernels/infonce/fused/gluon_ring.py"
    assert turn in ring.read_text()
    ring.write_text(ring.read_text().replace(turn, ""))
    last = "        column_sum += sum_in_threads(power, BLOCK_M, BLOCK_N)\n"
    path = "kernels/infonce/fused/gluon_sums.py"
    printed = check_planted(
        project, "infonce", "bf16 D512 gluon", path, {last: f"{last}    {turn}"}
    )
    [[before, after]] = re.findall(
        r"gluon_sums_kernel .*? clocks \d+/(\d+)/\d+ -> \d+/(\d+)", printed
    )
    assert int(after) > 1.1 * int(before), printed
    assert "bound tensor -> turn" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOWER)
def test_a_slower_tile_turns_the_gate_red(project, name):
    *plant, column = SLOWER[name]
    printed = check_planted(project, *plant)
    assert "copy_distances" in printed
    changes = re.findall(rf"sm_90: .*?{column} (\d+) -> (\d+)", printed)
    assert changes, printed
    assert all(int(after) > int(before) for before, after in changes), printed
