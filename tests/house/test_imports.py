"""Imports run one way, and imports work without optional packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = {
    "flash_attn",
    "xformers",
    "wandb",
    "trackio",
    "torchcodec",
    "spdl",
    "webdataset",
    "spacy",
    "open_clip",
    "inf_cl",
    "memeff",
    "siglip_kernel",
    "liger_kernel",
    "late_interaction_kernels",
    "flash_maxsim",
    "cv2",
    "mteb",
    "pyarrow",
    "huggingface_hub",
}


def _sources() -> list[Path]:
    folders = [ROOT / name for name in ("kernels", "svilm_fast", "train", "bench")]
    return [path for folder in folders for path in folder.glob("**/*.py")]


def test_import_directions():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_optional_packages_are_never_imported_at_module_level():
    found = []
    for path in _sources():
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{path.name}: {name}" for name in names if name.split(".")[0] in OPTIONAL]
    assert not found, found


# The compiler takes as long to import as PyTorch itself; whoever compiles imports it.
COMPILER = ("torch._dynamo", "torch._inductor")


def _unless_imported(*modules: str) -> str:
    return f"import sys; sys.exit(' '.join({set(modules)} & set(sys.modules)) or None)"


@pytest.mark.parametrize("module", ["decode_process", "pack", "index.build", "samples"])
def test_processes_that_only_read_files_start_without_pytorch(module):
    code = f"import svilm_fast.data.{module}\n{_unless_imported('torch')}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_rank_starts_without_the_compiler():
    code = (
        "from svilm_fast.train.environment import import_deepspeed, seed_everything\n"
        'import_deepspeed("cpu")\n'
        "seed_everything(0, deterministic=False, threads=None)\n"
        "import deepspeed.runtime.zero.muon.muon_optimizer\n"
        f"{_unless_imported(*COMPILER)}"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "svilm_fast.kernels",
        "svilm_fast.models",
        "svilm_fast.data",
        "svilm_fast.evaluation.retrieval",
        "svilm_fast.train.run.session",
        "svilm_fast.cli",
    ],
)
def test_imports_without_optional_packages_and_the_compiler(module):
    block = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in sorted(OPTIONAL))
    result = subprocess.run(
        [sys.executable, "-c", f"{block}import {module}\n{_unless_imported(*COMPILER)}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
