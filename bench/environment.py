"""The environment of a measurement, and a fingerprint of what two comparable ones share."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

from svilm_fast.core.git import git
from svilm_fast.core.machine import cpu_name, package_version, usable_cores

ROOT = Path(__file__).resolve().parents[1]
MUST_MATCH = ["machine", "cpu", "cores", "cores_usable", "threads", "gpu", "gpu_memory_bytes"]
MUST_MATCH += ["driver", "python", "torch", "cuda", "triton"]
_PREFIXES = ("TRITON_", "CUBLAS_", "CUDA_", "NCCL_", "PYTORCH_", "OMP_", "MKL_", "SVILM_")
_PACKAGES = ["svilm-fast", "deepspeed", "numpy", "av", "tokenizers", "flash-attn", "xformers"]
_PACKAGES += ["inf-cl", "open-clip-torch", "pytest-benchmark", "memeff", "siglip-kernel"]
_PACKAGES += ["liger-kernel", "late-interaction-kernels", "flash-maxsim"]
_LOCK_FILE = "constraints.txt"
_GPU_FIELDS = (
    "driver_version,uuid,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,"
    "temperature.gpu,clocks_throttle_reasons.active,ecc.mode.current,mig.mode.current,"
    "persistence_mode"
)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine, device, driver state and variables; None for what cannot be read.

    `fingerprint` hashes the facts in `MUST_MATCH`. Clocks and load are those at the time of the
    call.
    """
    facts: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "cores_usable": usable_cores(),
        "threads": torch.get_num_threads(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg()[0],
        "container": _container(),
        "gpu": None,
        "gpu_memory_bytes": None,
        "driver": None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "ptxas": _assemblers(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "lock_hash": _file_hash(ROOT / _LOCK_FILE),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "diff_hash": _diff_hash(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_PREFIXES)},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_bytes"] = properties.total_memory
        facts["gpu_processors"] = properties.multi_processor_count
        facts["gpu_capability"] = f"{properties.major}.{properties.minor}"
        facts["gpu_state"] = gpu_state(device)
        facts["driver"] = facts["gpu_state"].get("driver_version")
    comparable = json.dumps({name: facts[name] for name in MUST_MATCH}, sort_keys=True)
    facts["fingerprint"] = hashlib.sha256(comparable.encode()).hexdigest()[:16]
    return facts


def gpu_state(device: torch.device) -> dict[str, str]:
    """Driver, clocks, power and throttling of a GPU from `nvidia-smi`.

    Empty if it is not installed, or lists several GPUs but not this one.
    """
    try:
        text = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {}
    names = _GPU_FIELDS.split(",")
    listed = [
        dict(zip(names, [value.strip() for value in line.split(",")], strict=True))
        for line in text.splitlines()
    ]
    # nvidia-smi lists all GPUs of the machine, PyTorch only those in CUDA_VISIBLE_DEVICES.
    uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
    own = [state for state in listed if state["uuid"].removeprefix("GPU-") == uuid]
    return next(iter(own or listed if len(listed) == 1 else own), {})


def slug(facts: dict[str, Any]) -> str:
    """A folder name for the machine: its GPU, or its CPU architecture."""
    name = facts["gpu"] or f"cpu-{facts['machine']}"
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")


def _container() -> str | None:
    """The image's name from the environment; 'unnamed' in a container without one."""
    for name in ("SVILM_CONTAINER", "CONTAINER_IMAGE", "NVIDIA_PYTORCH_VERSION"):
        if name in os.environ:
            return os.environ[name]
    inside = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
    return "unnamed" if inside else None


def _assemblers() -> dict[str, str]:
    """The release of each `ptxas` in Triton's package."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    found = {}
    for path in sorted(folder.glob("ptxas*")):
        shown = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, check=False
        )
        release = re.search(r"V([\d.]+)", shown.stdout)
        if release:
            found[path.name] = release[1]
    return found


def _text(path: str) -> str | None:
    file = Path(path)
    return file.read_text().strip() if file.is_file() else None


def _file_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def _diff_hash() -> str | None:
    """Hash of the uncommitted changes in tracked files; None without any."""
    difference = _git("diff", "HEAD")
    return hashlib.sha256(difference.encode()).hexdigest()[:16] if difference else None


def _git(*arguments: str) -> str:
    """Output of a git command in the project's folder; empty outside of a repository."""
    try:
        return git(ROOT, *arguments).strip()
    except ValueError:
        return ""
