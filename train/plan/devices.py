"""Devices that a plan can be made for, with data-sheet values; nothing here was measured."""

from __future__ import annotations

import re
from dataclasses import dataclass

from svilm_fast.core.errors import UserError

GIB = 2**30

# Dense bf16 tensor-core peaks from the vendor's data sheets, in FLOP/s, by a part of the name.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
}


def peak_flops(device_name: str) -> float | None:
    """Return the dense bf16 peak of a GPU in FLOP/s, or None for one that is not in the table."""
    matches = [name for name in PEAK_FLOPS if name in device_name]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


@dataclass(frozen=True)
class Device:
    """A kind of rank.

    memory: bytes. peak: FLOP/s of dense bf16 products. nvlink: bytes/s in one direction between
    GPUs of a node. network: bytes/s in one direction of a GPU's own adapter.
    """

    name: str
    memory: float
    peak: float
    nvlink: float
    network: float
    on_gpu: bool = True


def _gpu(name: str, memory: float, known_as: str, nvlink: float, network: float) -> Device:
    peak = peak_flops(known_as)
    assert peak is not None
    return Device(name, memory, peak, nvlink * 1e9, network * 1e9)


# NVIDIA data sheets: memory; dense bf16 rate (PEAK_FLOPS); NVLink 3, 4, 5 of 600, 900,
# 1,800 GB/s in both directions together. Network: one adapter per GPU as in DGX A100 (HDR, 200
# Gbit/s), DGX H100, H200 and B200 (NDR, 400 Gbit/s).
GPUS = {
    "a100-80": _gpu("a100-80", 80e9, "A100", 300, 25),
    "h100": _gpu("h100", 80e9, "H100", 450, 50),
    "h200": _gpu("h200", 141e9, "H200", 450, 50),
    "b200": _gpu("b200", 180e9, "B200", 900, 50),
}
# The order of magnitude of a CPU core; it only serves to order the choices.
CPU = Device("cpu", 0.0, 50e9, 1e9, 1e9, on_gpu=False)
_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def device_of(name: str) -> Device:
    """Return a device by name; raises UserError with the known names."""
    if name not in GPUS:
        raise UserError(f"unknown GPU {name!r}: use one of {', '.join(GPUS)}, or --memory 80GiB")
    return GPUS[name]


def parse_bytes(text: str) -> float:
    """Return the bytes of `80GiB`, `141GB`, `512M` or a plain number; raises UserError."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None or match[1].count(".") > 1 or match[1] == ".":
        raise UserError(f"cannot read the memory size {text!r}: write it as 80GiB or 141GB")
    unit = _UNITS[match[2]]
    if match[3] and match[2]:
        unit = 1024 ** ("kmgt".index(match[2]) + 1)
    return float(match[1]) * unit
