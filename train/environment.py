"""What must be arranged around DeepSpeed before it is imported, each cure with its reason."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import random
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
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
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
    """Return a TCP port that is free now on the loopback device."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_without_launcher() -> dict[str, str]:
    """Return this process's environment as it would be outside of any launcher."""
    return {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}


def use_launcher_variables() -> None:
    """Set the variables of torch's launchers where another one, or none, started this process.

    Under `srun` with one task per rank they follow from Slurm's own; MASTER_ADDR must be given
    there for more than one node. A plain `python` start is a group of one: without these variables
    DeepSpeed looks for MPI and stops at a missing mpi4py, and a fixed port would collide with
    another run on the same machine.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return
    # Slurm sets the number of tasks of a step for what srun starts only, not in a batch script.
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
                "srun started ranks on several nodes without MASTER_ADDR; export the first node's "
                'name before srun: MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | '
                "head -n 1), as train/launch/slurm_tasks.sh does"
            )
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    # The same on all ranks, and another one for the next job on the node.
    port = FIRST_SLURM_PORT + int(os.environ.get("SLURM_JOB_ID", "0")) % SLURM_PORTS
    os.environ.setdefault("MASTER_PORT", str(port))
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        WORLD_SIZE=str(tasks),
    )


def use_own_extension_cache() -> None:
    """Give every Python environment its own cache of compiled extensions.

    torch keys the cache by Python and CUDA version only, so two environments with different
    torch versions overwrite each other's libraries and fail with undefined symbols.
    """
    if "TORCH_EXTENSIONS_DIR" in os.environ:
        return
    key = hashlib.sha256(f"{sys.prefix}|{torch.__version__}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    os.environ["TORCH_EXTENSIONS_DIR"] = str(cache / "svilm-fast" / f"torch_extensions_{key}")


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for `device` (`cpu` or `cuda`) so that it never compiles anything.

    On a CPU its process group would compile a C++ operator at the first start (minutes, and it
    dies without a compiler); an empty table of compatible operators makes it use gloo alone, and
    also skips the probes that run compilers and query devices.
    """
    use_own_extension_cache()
    os.environ.setdefault("DS_ACCELERATOR", device)
    # DeepSpeed logs its whole configuration at INFO from every rank; ours is in the run directory.
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    vars(deepspeed.ops)["__compatible_ops__"] = {}
    level = logging.getLevelName(os.environ["DEEPSPEED_LOG_LEVEL"].upper())
    redirect(logger, level)
    # What the console does not show may still go to the log of other packages.
    logger.setLevel(min(level, logging.INFO) if is_kept() else level)
    return deepspeed


def seed_everything(seed: int, *, deterministic: bool, threads: int | None) -> None:
    """Seed Python, NumPy and torch alike on every rank, and set torch's determinism."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        # cuBLAS picks its workspace at the first call, so this must come before it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)


def package_versions() -> dict[str, str]:
    """Return the installed versions of what the training stands on."""
    return {name: package_version(name) or "not installed" for name in PACKAGES}


def fingerprint(device: torch.device, world_size: int) -> dict[str, Any]:
    """Describe machine and software of a run, for `env.json`."""
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
