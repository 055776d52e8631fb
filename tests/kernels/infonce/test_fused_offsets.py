"""64-bit offsets: element 2^31 and beyond, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("offset_worker.py")


def run(worker, case):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(worker), case],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["inputs", "gradient"])
def test_elements_beyond_two_to_the_31(case):
    result = run(WORKER, case)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, module, old, new",
    [
        ("inputs", "tiles", "left_row.to(tl.int64)", "left_row.to(tl.int32)"),
        (
            "gradient",
            "gradient",
            "(row - first_row).to(tl.int64)",
            "(row - first_row).to(tl.int32)",
        ),
    ],
)
def test_the_planted_32_bit_offset_is_caught(case, module, old, new, tmp_path):
    # The worker's copy changes the module in place before anything imports names from it.
    planted = tmp_path / "planted.py"
    first_lines = f"""
from pathlib import Path
from svilm_fast.kernels.infonce.fused import {module} as victim
source = Path(victim.__file__).read_text()
assert {old!r} in source, "update the test"
Path({str(planted)!r}).write_text(source.replace({old!r}, {new!r}))
exec(compile(Path({str(planted)!r}).read_text(), {str(planted)!r}, "exec"), vars(victim))
"""
    worker = tmp_path / "offset_worker.py"
    worker.write_text(first_lines + WORKER.read_text())
    result = run(worker, case)
    assert planted.exists()
    assert result.returncode != 0
