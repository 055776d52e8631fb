"""One block alone on an SM: what its instructions use, and when."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from svilm_fast.bench.static import machine
from svilm_fast.bench.static.tile_trace import Executed, is_product
from svilm_fast.kernels.machine_code import Instruction

_LANES = 32
# Rows of a product of one warp group (4 warps), and bytes of one row of an operand per product.
_GROUP_WARPS, _GROUP_ROWS, _ROW_BYTES = 4, 64, 32
_HMMA_FLOPS = 2 * 16 * 8 * 16
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
# An arrival that announces no bytes, and the two forms of a barrier's address: a constant part, or
# a register alone, which an addition of a constant has set.
_PLAIN_ARRIVAL = "SYNCS.ARRIVE.TRANS64.A1T0"
_BARRIER = re.compile(r"\[(U?R\d+)(?:\+U?R\w+)*(?:\+0x([0-9a-f]+))?\]")
_ADDITIONS = ("UIADD3", "IADD3", "VIADD")
_ADDITION = re.compile(r"(U?R\d+), (U?R\d+), 0x([0-9a-f]+)(?:, U?RZ)?")
_SHARED = ("LDS", "STS", "LDSM", "STSM")


@dataclass(frozen=True)
class Footprint:
    """What the model needs of a compiled kernel besides its instructions.

    `described_store_bytes`: bytes of one TMA store.
    """

    warps: int
    blocks_per_sm: int
    described_store_bytes: int = 0


@dataclass
class _Copies:
    """Copies that one wait awaits together; those to registers are awaited by their first use."""

    issued_at: int
    size: int
    arrival: float
    registers: range = field(default_factory=lambda: range(0))


class BarrierUse(NamedTuple):
    """A wait for, or an arrival at, a barrier; `place` is its offset in shared memory."""

    clock: float
    waits: bool
    place: int


class BlockTimeline:
    """Executes traces of one block; `case` selects the column of the brackets in `machine`.

    Products run asynchronously, as fast as tensor cores and their operands in shared memory permit.
    Copies arrive `TMA_CLOCKS` or `COPY_CLOCKS` after their issue, at the rate of L2. All other
    instructions take issue slots, MUFU, shared memory or (HMMA) tensor cores, whichever is slowest
    between two points where warps wait.

    Attributes:
        clock: clocks since the start.
        used: FLOPs, instructions, MUFU results and bytes since `reset`.
        exposed: instructions without a product in flight since `reset`.
        waited: clocks of waiting for copies since `reset`.
        distances: number of waits per distance in instructions since `reset`.
        product_distances: the same of the waits for products.
        barriers: since `reset`, what a warp does at barriers in memory, in order.
    """

    def __init__(self, code: Sequence[Instruction], footprint: Footprint, case: str) -> None:
        self._footprint = footprint
        self._case = case
        self._copy_bytes = _copy_bytes(code)
        self._l2_rate = self._of(machine.L2_RATE) / machine.SMS / self._of(machine.CLOCK_HZ)
        self.clock = 0.0
        self._position = 0
        self._l2_free = self._tensor_free = 0.0
        self._open_products = False
        self._products: deque[tuple[float, int]] = deque()
        self._described: deque[_Copies] = deque()
        self._grouped: deque[_Copies] = deque()
        self._loads: dict[int, _Copies] = {}
        self._added: dict[str, int] = {}
        self._group_bytes = 0
        self._since = Counter[str]()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted; what is under way stays."""
        self.used = Counter[str]()
        self.distances = Counter[int]()
        self.product_distances = Counter[int]()
        self.barriers: list[BarrierUse] = []
        self.exposed = 0
        self.waited = 0.0

    def follow(self, trace: Iterable[Executed]) -> None:
        """Execute a trace."""
        for instruction, live in trace:
            self._position += 1
            self.used["instructions"] += 1
            self._since["instructions"] += 1
            self.exposed += not (self._products or self._open_products)
            if self._loads:
                self._await_loads(instruction)
            if live:
                self._execute(instruction)
                self._note_addition(instruction)
        self._settle()

    def _of(self, bracket: machine.Bracket) -> float:
        return float(getattr(bracket, self._case))

    def _execute(self, instruction: Instruction) -> None:
        name, opcode = instruction.name, instruction.opcode
        threads = _LANES * self._footprint.warps
        if is_product(instruction):
            self._product(instruction)
        elif opcode.startswith("WARPGROUP.DEPBAR"):
            self._await_products(_last_number(instruction))
        elif name == "MUFU":
            self._count("mufu", threads)
        elif name in _SHARED:
            self._count("smem", threads * _width(opcode))
        elif name == "SHFL":
            self._count("smem", threads * 4)
        elif name == "LDGSTS":
            self._count("smem", threads * _width(opcode))
            self._group_bytes += threads * _width(opcode)
        elif name == "LDGDEPBAR":
            self._grouped.append(self._issue(self._group_bytes, machine.COPY_CLOCKS))
            self._group_bytes = 0
        elif opcode.startswith(_PLAIN_ARRIVAL):
            self._use_barrier(instruction, waits=False)
        elif opcode.startswith("SYNCS.ARRIVE.TRANS64") and instruction.address in self._copy_bytes:
            size = self._copy_bytes[instruction.address]
            self._count("smem", size)
            self._described.append(self._issue(size, machine.TMA_CLOCKS))
        elif name == "UTMALDG" and self._described:
            self._described[-1].issued_at = self._position
        elif name == "DEPBAR" and "SB0" in instruction.operands:
            self._await_copies(self._grouped, _last_number(instruction))
        elif opcode.startswith("SYNCS.PHASECHK"):
            self._await_copies(self._described, max(0, len(self._described) - 1))
            self._use_barrier(instruction, waits=True)
        elif name == "LDG":
            self._load(instruction, threads)
        elif name == "STG":
            self.used["l2"] += threads * _width(opcode)
        elif name == "UTMASTG":
            self.used["l2"] += self._footprint.described_store_bytes
        elif name == "BAR":
            self._settle()
            self.clock += self._of(machine.BARRIER_CLOCKS)

    def _count(self, what: str, amount: int) -> None:
        self.used[what] += amount
        self._since[what] += amount

    def _settle(self) -> None:
        """Let the clock pass the instructions since the last point where warps waited."""
        slots = self._since["instructions"] * self._footprint.warps / machine.SCHEDULERS
        self.clock += max(
            slots / self._of(machine.ISSUE_EFFICIENCY),
            self._since["mufu"] / machine.MUFU_PER_CLOCK,
            self._since["smem"] / machine.SHARED_BYTES_PER_CLOCK,
            self._since["tensor work"] / machine.TENSOR_FLOPS_PER_CLOCK,
        )
        self._since.clear()

    def _product(self, instruction: Instruction) -> None:
        """HGMMA and QGMMA of a warp group run asynchronously, HMMA of a warp does not."""
        if instruction.name == "HMMA":
            work = _HMMA_FLOPS * self._footprint.warps
            self.used["flops"] += work
            self._count("tensor work", work)
            return
        rows, columns, depth = map(int, instruction.opcode.split(".")[1].split("x"))
        groups = self._footprint.warps // _GROUP_WARPS
        # The left operand is in shared memory unless a register precedes the descriptor.
        read = columns + (rows if instruction.operands.split(", ")[1].startswith("gdesc") else 0)
        self.used["flops"] += 2 * rows * columns * depth * groups
        self.used["operands"] += read * _ROW_BYTES * groups
        # Tensor cores take as long for 8 floats or 32 bytes of depth as for 16 halves.
        work = 2 * rows * columns * 16 * groups
        self.used["tensor work"] += work
        self._settle()
        self._tensor_free = max(self._tensor_free, self.clock) + max(
            work / machine.TENSOR_FLOPS_PER_CLOCK / machine.TENSOR_EFFICIENCY,
            read * _ROW_BYTES * groups / machine.SHARED_BYTES_PER_CLOCK,
        )
        self._open_products = "gsb0" not in instruction.operands
        if not self._open_products:
            self._products.append((self._tensor_free, self._position))

    def _await_products(self, remaining: int) -> None:
        self._settle()
        position = None
        while len(self._products) > remaining:
            end, position = self._products.popleft()
            self.clock = max(self.clock, end)
        if position is not None:
            self.product_distances[self._position - position] += 1

    def _use_barrier(self, instruction: Instruction, *, waits: bool) -> None:
        self._settle()
        found = _BARRIER.search(instruction.operands)
        if found is None:
            return
        place = int(found[2], 16) if found[2] else self._added.get(found[1])
        if place is not None:
            self.barriers.append(BarrierUse(self.clock, waits, place))

    def _note_addition(self, instruction: Instruction) -> None:
        """Remember what was added to the address in a register, until it is written again.

        The address may be set before the loop that uses it.
        """
        self._added.pop(instruction.operands.partition(",")[0], None)
        found = _ADDITION.fullmatch(instruction.operands)
        # A pointer to which every iteration adds goes through a ring.
        if instruction.name in _ADDITIONS and found and found[1] != found[2]:
            self._added[found[1]] = int(found[3], 16)

    def _issue(self, size: int, latency: machine.Bracket) -> _Copies:
        self._settle()
        self.used["l2"] += size
        self._l2_free = max(self._l2_free, self.clock) + size / self._l2_rate
        arrival = max(self.clock + self._of(latency), self._l2_free)
        return _Copies(self._position, size, arrival)

    def _await_copies(self, copies: deque[_Copies], remaining: int) -> None:
        self._settle()
        last = None
        while len(copies) > remaining:
            last = copies.popleft()
            if last.size:
                self._wait_until(last.arrival)
        if last is not None and last.size:
            self.distances[self._position - last.issued_at] += 1

    def _load(self, instruction: Instruction, threads: int) -> None:
        """A load to registers; narrow ones mostly repeat a few bytes, so they count none."""
        width = _width(instruction.opcode)
        copy = self._issue(threads * width if width == 16 else 0, machine.COPY_CLOCKS)
        first = min(_registers(instruction.operands.split(",")[0]), default=0)
        copy.registers = range(first, first + max(1, width // 4))
        self._loads.update(dict.fromkeys(copy.registers, copy))

    def _await_loads(self, instruction: Instruction) -> None:
        for register in _registers(instruction.operands) & self._loads.keys():
            copy = self._loads.get(register)
            if copy is None:
                continue
            self._settle()
            self._wait_until(copy.arrival)
            if copy.size:
                self.distances[self._position - copy.issued_at] += 1
            for each in copy.registers:
                self._loads.pop(each, None)

    def _wait_until(self, arrival: float) -> None:
        self.waited += max(0.0, arrival - self.clock)
        self.clock = max(self.clock, arrival)


@cache
def _registers(operands: str) -> frozenset[int]:
    return frozenset(int(number) for number in re.findall(r"\bR(\d+)", operands))


def _width(opcode: str) -> int:
    """Bytes per lane of a load or store."""
    parts = opcode.split(".")
    if parts[0] in ("LDSM", "STSM"):
        return 4 * int(parts[-1]) if parts[-1].isdigit() else 4
    return next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)


def _last_number(instruction: Instruction) -> int:
    return int(instruction.operands.split(", ")[-1], 16)


def _copy_bytes(code: Sequence[Instruction]) -> dict[int, int]:
    """Bytes that each barrier arrival announces: the constant that its register last received."""
    constants: dict[str, int] = {}
    found: dict[int, int] = {}
    for each in code:
        register = each.operands.split(",")[0]
        constant = re.fullmatch(r"R\d+, (?:RZ, RZ, )?0x([0-9a-f]+)", each.operands)
        if each.name in ("MOV", "IMAD") and constant:
            constants[register] = int(constant[1], 16)
        elif each.opcode.startswith(_PLAIN_ARRIVAL):
            continue
        elif each.opcode.startswith("SYNCS.ARRIVE.TRANS64"):
            announced = constants.get(each.operands.split(", ")[-1])
            if announced is None:
                raise ValueError(f"bytes of the copy at {each.address:#x} are not a constant")
            found[each.address] = announced
        else:
            constants.pop(register, None)
    return found
