"""What a measurement depends on, and the fingerprint of the part that makes two comparable."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import triton

ROOT = Path(__file__).resolve().parents[1]
_MUST_MATCH = ["machine", "cpu", "cores", "gpu", "gpu_memory_bytes"]
_MUST_MATCH += ["python", "torch", "cuda", "triton"]
_PREFIXES = ("TRITON_", "CUBLAS_", "NCCL_", "PYTORCH_", "OMP_", "SVILM_")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, driver state and variables; `fingerprint` hashes what must match."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpu": None,
        "gpu_memory_bytes": None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_PREFIXES)},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_bytes"] = properties.total_memory
        facts["gpu_state"] = gpu_state()
    comparable = json.dumps({name: facts[name] for name in _MUST_MATCH}, sort_keys=True)
    facts["fingerprint"] = hashlib.sha256(comparable.encode()).hexdigest()[:16]
    return facts


def gpu_state() -> dict[str, str]:
    """Driver, clocks, power and throttling as `nvidia-smi` tells them; empty where it is absent."""
    fields = (
        "driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu,"
        "clocks_throttle_reasons.active,ecc.mode.current,mig.mode.current,persistence_mode"
    )
    try:
        text = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {}
    values = [value.strip() for value in text.splitlines()[0].split(",")]
    return dict(zip(fields.split(","), values, strict=True))


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()
