"""The environment of a run: launcher variables, workarounds for DeepSpeed, seeds, versions."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import random
import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svilm_fast.core.errors import UserError
from svilm_fast.core.machine import package_version
from svilm_fast.core.third_party import is_kept, redirect

FIRST_SLURM_PORT, SLURM_PORTS = 20_000, 10_000
LOCAL_SIZE = "LOCAL_WORLD_SIZE"  # ranks of this node
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LOCAL_SIZE)
PACKAGES = (
    "svilm-fast",
    "torch",
    "triton",
    "deepspeed",
    "numpy",
    "einops",
    "pydantic",
    "av",
    "tokenizers",
    "safetensors",
    "flash-attn",
    "xformers",
)


def free_port() -> int:
    """Return a free TCP port of the loopback device."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_without_launcher() -> dict[str, str]:
    """Return the environment of this process without the variables of a launcher."""
    return {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}


def use_launcher_variables() -> None:
    """Set the variables of torch's launchers if none of them started this process.

    Under `srun` with one task per rank they are derived from Slurm's variables; with more than one
    node MASTER_ADDR must be set. A plain `python` start is a group of one: without these variables
    DeepSpeed would need mpi4py, and a fixed port would collide with other runs on the machine.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        if "LOCAL_SIZE" in os.environ:  # DeepSpeed's name for it
            os.environ.setdefault(LOCAL_SIZE, os.environ["LOCAL_SIZE"])
        return
    # Slurm sets this only in processes that srun started, not in the batch script.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        _use_slurm_variables(tasks)
        return
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )


def _use_slurm_variables(tasks: int) -> None:
    if "MASTER_ADDR" not in os.environ:
        if int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) > 1:
            raise UserError(
                "srun started ranks on several nodes without MASTER_ADDR; export the name of the "
                "first node before srun, as train/launch/slurm_tasks.sh does: "
                'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
            )
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    # Equal on all ranks, and different for the next job on the node.
    port = FIRST_SLURM_PORT + int(os.environ.get("SLURM_JOB_ID", "0")) % SLURM_PORTS
    os.environ.setdefault("MASTER_PORT", str(port))
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        WORLD_SIZE=str(tasks),
    )
    per_node = _tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = int(os.environ.get("SLURM_NODEID", "0"))
    if node < len(per_node):
        os.environ[LOCAL_SIZE] = str(per_node[node])
    elif int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) == 1:
        os.environ[LOCAL_SIZE] = str(tasks)


def _tasks_per_node(text: str) -> list[int]:
    """Tasks of every node, from Slurm's notation: `8(x2),4` means 8, 8 and 4."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, repeats in found for _ in range(int(repeats or 1))]


def use_own_extension_cache() -> None:
    """Use a separate cache of compiled extensions for each Python environment.

    torch keys the cache only by Python and CUDA version, so environments with different torch
    versions overwrite each other's libraries and fail with undefined symbols.
    """
    if "TORCH_EXTENSIONS_DIR" in os.environ:
        return
    key = hashlib.sha256(f"{sys.prefix}|{torch.__version__}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ["TORCH_EXTENSIONS_DIR"] = str(cache / "svilm-fast" / f"torch_extensions_{key}")


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for `device` (`cpu` or `cuda`) so that it compiles nothing.

    On a CPU its process group would compile a C++ operator at the first start, which takes minutes
    and needs a compiler. With an empty table of compatible operators it uses only gloo, and skips
    the probes that run compilers and query devices.
    """
    use_own_extension_cache()
    os.environ.setdefault("DS_ACCELERATOR", device)
    # At INFO every rank logs DeepSpeed's whole configuration, which is in the run directory.
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    vars(deepspeed.ops)["__compatible_ops__"] = {}
    _import_muon()
    level = logging.getLevelName(os.environ["DEEPSPEED_LOG_LEVEL"].upper())
    redirect(logger, level)
    # Messages that the console does not show still go to third_party.log.
    logger.setLevel(min(level, logging.INFO) if is_kept() else level)
    return deepspeed


def _import_muon() -> None:
    """Import DeepSpeed's Muon optimizer with its functions as they are written.

    Every engine imports it, to learn that our optimizer is another one. Marked for torch.compile,
    its functions would import the compiler, which takes 2 s of every rank's start.
    """
    from deepspeed.runtime import compiler

    compiled = compiler.compile
    compiler.compile = lambda *arguments, **options: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = compiled


def seed_everything(seed: int, *, deterministic: bool, threads: int | None) -> None:
    """Seed Python, NumPy and torch equally on every rank, and set torch's determinism."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        # cuBLAS reads this at its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    # The call imports torch's compiler, which takes as long as all other imports.
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if torch.are_deterministic_algorithms_enabled() != deterministic or warned_only:
        torch.use_deterministic_algorithms(deterministic)


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that matter for training."""
    return {name: package_version(name) or "not installed" for name in PACKAGES}


def fingerprint(device: torch.device, world_size: int) -> dict[str, Any]:
    """Return the description of machine and software for `env.json`."""
    described = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "world_size": world_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "packages": package_versions(),
        "cuda": torch.version.cuda,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = properties.name
        described["gpu_memory_bytes"] = properties.total_memory
    return described
