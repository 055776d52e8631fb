"""Compiles recorded kernel launches for named GPUs on any machine and analyses the machine code.

Triton's own JIT compiles a launch, with a driver that only knows the target GPU. The specialisation
(alignment, constants, options) is therefore the one that a launch on that GPU would use. Nothing
runs on a device.
"""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver

from svilm_fast.kernels.device import A100, B200, H200, DeviceTraits
from svilm_fast.kernels.launch import Launch
from svilm_fast.kernels.machine_code import Instruction, parse

_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Architecture:
    """The resources of a target GPU (CUDA programming guide, compute capabilities)."""

    name: str
    capability: int
    traits: DeviceTraits
    shared_bytes_per_sm: int
    warps_per_sm: int = 64
    blocks_per_sm: int = 32
    registers_per_sm: int = 65536

    def resident_blocks(self, registers: int, shared_bytes: int, num_warps: int) -> int:
        """Blocks of this footprint that fit on one SM; 0 where a block cannot launch at all."""
        if shared_bytes > self.traits.shared_memory_bytes:
            return 0
        registers_per_warp = -(-max(registers, 1) * 32 // 256) * 256
        warps_per_quarter = self.registers_per_sm // 4 // registers_per_warp
        by_registers = 4 * warps_per_quarter // num_warps
        reserved = 1024 if self.capability >= 80 else 0
        by_shared = self.shared_bytes_per_sm // (shared_bytes + reserved)
        return min(by_registers, by_shared, self.warps_per_sm // num_warps, self.blocks_per_sm)


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("sm_80", 80, A100, shared_bytes_per_sm=167_936),
        Architecture("sm_90", 90, H200, shared_bytes_per_sm=233_472),
        Architecture("sm_100", 100, B200, shared_bytes_per_sm=233_472),
    )
}


class _TargetOnlyDriver(DriverBase):
    """A driver without a device. The capability serves as device index, to separate JIT caches."""

    def __init__(self, capability: int) -> None:
        super().__init__()
        self._capability = capability

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("ahead-of-time compilation has no device to benchmark on")


@dataclass(frozen=True)
class Compiled:
    """Properties of the machine code of one launch.

    `described_store_bytes` are the mean bytes that one TMA store writes, 0 without such stores.
    """

    kernel: str
    architecture: str
    binary_hash: str
    num_warps: int
    registers: int
    spill_bytes: int
    local_accesses: int
    shared_bytes: int
    shared_limit: int
    tensor_instructions: dict[str, int]
    half_precision_dot: bool
    tf32_in_ptx: bool
    loop_stores: int
    fp64_instructions: int
    atomics: int
    wide_loads: int
    loads: int
    blocks_per_sm: int
    described_store_bytes: int
    instructions: tuple[Instruction, ...] = field(repr=False)


def compile_launch(launch: Launch, architecture: Architecture) -> Compiled:
    """Compile one recorded launch for `architecture` and describe the result.

    Raises `RuntimeError` if the Triton interpreter is enabled, because it replaces the compiler.
    """
    return _describe(_compile(launch, architecture), architecture)


def ptx_of(launch: Launch, architecture: Architecture) -> str:
    """The PTX of one recorded launch; raises like `compile_launch`."""
    return str(_compile(launch, architecture).asm["ptx"])


def _compile(launch: Launch, architecture: Architecture) -> Any:
    if not hasattr(launch.kernel, "warmup") or triton.knobs.runtime.interpret:
        raise RuntimeError(
            "ahead-of-time compilation needs the compiler, but TRITON_INTERPRET is set: unset it"
        )
    driver.set_active(_TargetOnlyDriver(architecture.capability))
    return launch.kernel.run(*launch.args, grid=launch.grid, warmup=True, **launch.meta)


def _describe(kernel: Any, architecture: Architecture) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        assembly = _tool("cuobjdump", "-sass", file.name)
    registers = int(_find(r"REG:(\d+)", usage))
    stack = int(_find(r"STACK:(\d+)", usage))
    instructions = parse(assembly)
    opcodes = Counter(each.name for each in instructions)
    loads = [each.opcode for each in instructions if each.name in {"LDG", "LDGSTS", "UTMALDG"}]
    num_warps = kernel.metadata.num_warps
    return Compiled(
        kernel=kernel.metadata.name,
        architecture=architecture.name,
        binary_hash=hashlib.sha256(kernel.asm["ptx"].encode()).hexdigest(),
        num_warps=num_warps,
        registers=registers,
        spill_bytes=stack,
        local_accesses=opcodes["LDL"] + opcodes["STL"],
        shared_bytes=kernel.metadata.shared,
        shared_limit=architecture.traits.shared_memory_bytes,
        tensor_instructions={op: n for op, n in sorted(opcodes.items()) if op.endswith("MMA")},
        # Gluon begins with the GPU dialect, in which a product has another name.
        half_precision_dot=_has_half_precision_dot(
            kernel.asm["ttir"] if "ttir" in kernel.asm else kernel.asm["ttgir"]
        ),
        tf32_in_ptx="kind::tf32" in kernel.asm["ptx"],
        loop_stores=_stores_in_main_loop(instructions),
        fp64_instructions=sum(
            1
            for each in instructions
            if re.match(r"D(ADD|MUL|FMA|SETP|MNMX|MMA)\b", each.opcode) or ".F64" in each.opcode
        ),
        atomics=sum(1 for each in instructions if _is_atomic(each.opcode)),
        wide_loads=sum(1 for op in loads if ".128" in op or op.startswith("UTMALDG")),
        loads=len(loads),
        blocks_per_sm=architecture.resident_blocks(registers, kernel.metadata.shared, num_warps),
        described_store_bytes=_described_store_bytes(kernel.asm["ttgir"], opcodes["UTMASTG"]),
        instructions=tuple(instructions),
    )


def _tool(name: str, *arguments: str) -> str:
    result = subprocess.run(
        [str(_BINARIES / name), *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"{name} failed on a compiled kernel: {result.stderr.strip()}")
    return result.stdout


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"no {pattern!r} in the output of cuobjdump:\n{text}")
    return match.group(1)


def _is_atomic(opcode: str) -> bool:
    # The tensor-memory allocator of sm_100 sets and clears bits in shared memory. Their order does
    # not affect results.
    allocator = opcode.startswith(("ATOMS.OR", "ATOMS.AND"))
    return not allocator and re.match(r"(ATOM[GS]?|RED[G]?)(\.|$)", opcode) is not None


def _stores_in_main_loop(instructions: list[Instruction]) -> int:
    """Global stores inside the outermost loop with tensor-core work (else the longest loop)."""
    loops = []
    # Code that waits on barriers is placed after the last EXIT and jumps back: it is not a loop.
    end = max((each.address for each in instructions if each.opcode == "EXIT"), default=0)
    for each in instructions:
        if each.address > end:
            break
        if each.target is not None and each.target < each.address:
            loops.append((each.target, each.address))
    if not loops:
        return 0

    def weight(loop: tuple[int, int]) -> tuple[bool, int]:
        inside = [each.name for each in instructions if loop[0] <= each.address <= loop[1]]
        return any(name.endswith("MMA") for name in inside), len(inside)

    start, end = max(loops, key=weight)
    stores = ("STG", "UTMASTG", "ST.E", "ST.")
    return sum(
        1
        for each in instructions
        if start <= each.address <= end and (each.opcode + ".").startswith(stores)
    )


def _described_store_bytes(ttgir: str, instructions: int) -> int:
    """Bytes of all TMA stores of the kernel, divided by the instructions that start them."""
    stores = re.findall(
        r"async_tma_copy_local_to_global .*?tensordesc<tensor<([\dx]+)x[a-z]+(\d+)", ttgir
    )
    total = sum(math.prod(map(int, shape.split("x"))) * int(bits) // 8 for shape, bits in stores)
    return total // instructions if instructions else 0


def _has_half_precision_dot(text: str) -> bool:
    dots = [line for line in text.splitlines() if "tt.dot" in line or "warp_group_dot " in line]
    return any("xf16" in line or "xbf16" in line for line in dots)
