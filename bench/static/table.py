"""The static table: a row per kernel variant and target, as CSV under version control."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import triton

from svilm_fast.bench.static.structure import Structure
from svilm_fast.bench.tables import read_csv, write_csv
from svilm_fast.kernels.aot import Compiled

RESULTS = Path(__file__).resolve().parents[1] / "results" / "static"


@dataclass(frozen=True)
class CompiledRow:
    """What the compiler and the listing of the machine code say about one kernel."""

    op: str
    variant: str
    kernel: str
    target: str
    warps: int
    registers: int
    spill_bytes: int
    local_accesses: int
    shared_bytes: int
    shared_limit: int
    tensor_instructions: str
    half_precision_dot: bool
    tf32: bool
    loop_stores: int
    fp64: int
    atomics: int
    wide_loads: int
    loads: int
    blocks_per_sm: int

    @property
    def key(self) -> str:
        """What identifies the row across versions of the table."""
        return f"{self.op} | {self.variant} | {self.kernel} | {self.target}"


# The columns stand in the reverse order of the bases.
@dataclass(frozen=True)
class KernelRow(Structure, CompiledRow):
    """One kernel. The structure is empty where the model does not cover it.

    The hand-written `reason` excuses the rules that it names.
    """

    reason: str = ""


def row_of(
    op: str, variant: str, kernel: str, compiled: Compiled, structure: Structure
) -> KernelRow:
    """The table's row of one compiled kernel."""
    return KernelRow(
        op=op,
        variant=variant,
        kernel=kernel,
        target=compiled.architecture,
        warps=compiled.num_warps,
        registers=compiled.registers,
        spill_bytes=compiled.spill_bytes,
        local_accesses=compiled.local_accesses,
        shared_bytes=compiled.shared_bytes,
        shared_limit=compiled.shared_limit,
        tensor_instructions=" ".join(f"{k}:{n}" for k, n in compiled.tensor_instructions.items()),
        half_precision_dot=compiled.half_precision_dot,
        tf32=compiled.tf32_in_ptx,
        loop_stores=compiled.loop_stores,
        fp64=compiled.fp64_instructions,
        atomics=compiled.atomics,
        wide_loads=compiled.wide_loads,
        loads=compiled.loads,
        blocks_per_sm=compiled.blocks_per_sm,
        **asdict(structure),
    )


def table_path(version: str = triton.__version__) -> Path:
    """The path of the table of one Triton version."""
    return RESULTS / f"triton-{version}.csv"


def write_table(rows: list[KernelRow], path: Path) -> None:
    """Write rows in the order of their keys."""
    write_csv(rows, path)


def read_table(path: Path) -> list[KernelRow]:
    """Read a table; the error for a missing or damaged one names the command that writes it."""
    return read_csv(path, KernelRow, made_by="svilm bench static --write")


def read_other_table(path: Path) -> list[KernelRow]:
    """Rows of the newest table beside `path`; empty if there is no other."""
    others = [other for other in path.parent.glob("triton-*.csv") if other != path]
    newest = max(others, key=lambda other: _version(other.stem), default=None)
    return [] if newest is None else read_table(newest)


def _version(stem: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", stem))
