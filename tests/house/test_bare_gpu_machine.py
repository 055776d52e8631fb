"""`make gpu` needs nothing but PyTorch, Triton, einops, pytest and hypothesis."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THERE = {"torch", "triton", "einops", "numpy", "pytest", "pytest-benchmark", "hypothesis"}
IMPORTED_AS = {"pyyaml": "yaml", "pytest-xdist": "xdist"}


def absent_modules() -> list[str]:
    """Import names of the packages that the package and its tests require beyond these."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in required} - THERE
    return sorted(IMPORTED_AS.get(name, name.replace("-", "_")) for name in names)


@pytest.mark.parametrize(
    "run",
    [
        "import pytest; from svilm_fast.bench.gpu.check import test_files as files; "
        "sys.exit(pytest.main([*map(str, files()), '-m', 'gpu', '--collect-only', '-q']))",
        "import svilm_fast.bench.gpu.ops_run as run; assert callable(run.main)",
        "import svilm_fast.bench.gpu.check as check; assert len(check.test_files()) >= 6",
    ],
    ids=["tests", "benchmark", "all of it"],
)
def test_gpu_checks_import_only_what_a_gpu_machine_has(run: str) -> None:
    absent = absent_modules()
    assert {"pydantic", "deepspeed", "typer", "yaml", "pytest_timeout"} <= set(absent)
    block = "".join(f"sys.modules[{name!r}] = None; " for name in absent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {block}{run}"],
        cwd=ROOT,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
