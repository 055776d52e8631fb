"""The instructions that a warp executes for one tile, in order, from a kernel's machine code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from svilm_fast.kernels.machine_code import Instruction
from svilm_fast.kernels.registry import RoleWork, TileWork

COPIES = ("LDGSTS", "UTMALDG", "SYNCS.ARRIVE.TRANS64")


class Executed(NamedTuple):
    """An executed instruction; `live` is False if it issues, but its predicate is off."""

    instruction: Instruction
    live: bool


@dataclass(frozen=True)
class TileTrace:
    """What runs once before the tiles (empty if a program is a tile), and one tile."""

    prologue: list[Executed]
    tile: list[Executed]


@dataclass(frozen=True)
class RoleTrace:
    """One role: what runs once before its loop, an iteration of it, and what runs after it."""

    before: list[Executed]
    iteration: list[Executed]
    after: list[Executed]


class _Loop(NamedTuple):
    """Indices of the first instruction and of the branch back."""

    first: int
    last: int


def is_product(instruction: Instruction) -> bool:
    """Whether the instruction is a matrix product."""
    return instruction.name.endswith("MMA")


def trace_tile(instructions: Sequence[Instruction], work: TileWork) -> TileTrace:
    """Follow the control flow of a kernel for one tile.

    These rules replace the values that branches depend on:

    1. Code after the last EXIT, where warps wait for barriers, is not followed.
    2. The tile loop (`looped`) is the outermost loop with products. It runs `steps` times per tile,
       every loop inside `trips` times. A back edge counts once; a loop is known by its first
       instruction.
    3. Of two alternatives, the one with products runs, else the shorter one.
    4. A region that a branch skips runs, with one exception: with `steps` > 1, the regions of the
       tile loop are the start and the end of a tile. They run once per tile: those before the
       first product of the loop in its first step, the others in its last.
    5. A pipelined loop inside a tile issues no copies in its last iterations: in as many as the
       code before the loop has issued copies for.
    6. An instruction with the predicate `!PT` never executes, but takes an issue slot.

    Raises:
        ValueError: the kernel has no loop with products although `looped`, or has another number
            of loops than declared.
    """
    return _Walker(instructions).tile(work)


def trace_roles(instructions: Sequence[Instruction], roles: Sequence[RoleWork]) -> list[RoleTrace]:
    """Follow the control flow of each role of a kernel whose warps have roles.

    The loops of the roles are the outermost ones with products or TMA copies, apart from the loop
    in which the compiler's workers wait for a role (it has a BRX); `roles` are in their order. The
    code of a role ends at the jump back to that loop or at an EXIT. The rules of `trace_tile` hold.

    Raises:
        ValueError: there is another number of roles, or of loops inside one, than declared.
    """
    return _Walker(instructions).roles(roles)


class _Walker:
    def __init__(self, instructions: Sequence[Instruction]) -> None:
        end = max((i for i, each in enumerate(instructions) if each.name == "EXIT"), default=-1)
        code = self._code = list(instructions[: end + 1])
        self._index = {each.address: i for i, each in enumerate(code)}
        self._loops = _loops(code, self._index)
        self._trips: dict[_Loop, int] = {}

    def tile(self, work: TileWork) -> TileTrace:
        if not work.looped:
            self._declare(_Loop(-1, len(self._code)), work.trips, "a tile")
            return TileTrace([], list(self._run(0, len(self._code) - 1)))
        outermost = [loop for loop in self._loops if self._has_product(*loop)]
        if not outermost:
            raise ValueError("no loop with products: declare a program as the tile")
        loop = max(outermost, key=lambda loop: loop.last - loop.first)
        self._declare(loop, work.trips, "a tile")
        return TileTrace(list(self._run(0, loop.first - 1)), self._iteration(loop, work.steps))

    def roles(self, roles: Sequence[RoleWork]) -> list[RoleTrace]:
        working = [
            loop
            for loop in self._loops
            if self._has(loop, lambda each: is_product(each) or each.name == "UTMALDG")
            and not self._has(loop, lambda each: each.name == "BRX")
        ]
        found = [each for each in working if not any(_contains(one, each) for one in working)]
        if len(found) != len(roles):
            raise ValueError(
                f"{len(found)} roles with a loop, {len(roles)} declared: correct the op's `tiles`"
            )
        ends = [i for i, each in enumerate(self._code) if self._ends_role(i, each)]
        traces = []
        for loop, role in zip(found, roles, strict=True):
            self._declare(loop, role.trips, "a role's loop")
            start = max((i + 1 for i in ends if i < loop.first), default=0)
            stop = min((i for i in ends if i > loop.last), default=len(self._code) - 1)
            traces.append(
                RoleTrace(
                    list(self._run(start, loop.first - 1)),
                    self._iteration(loop, role.steps),
                    list(self._run(loop.last + 1, stop)),
                )
            )
        return traces

    def _ends_role(self, at: int, each: Instruction) -> bool:
        target = self._index.get(each.target) if each.target is not None else None
        back = each.name == "BRA" and target is not None and target < at
        return not each.guard and (back or each.name in ("BRX", "EXIT"))

    def _declare(self, outer: _Loop, trips: Sequence[int], where: str) -> None:
        inner = [each for each in self._loops if _contains(outer, each)]
        if len(inner) != len(trips):
            raise ValueError(
                f"{len(inner)} loops inside {where}, {len(trips)} declared: the compiler "
                "unrolled or kept a loop; correct the op's `tiles`"
            )
        self._trips |= dict(zip(inner, trips, strict=True))

    def _iteration(self, loop: _Loop, steps: int) -> list[Executed]:
        """A tile: `steps` iterations of the loop, where the loops over tiles and depth are one."""
        executed: list[Executed] = []
        for step in range(steps):
            skipped = self._skip(loop, step, steps) if steps > 1 else None
            executed += self._run(*loop, skipped)
        return executed

    def _skip(self, loop: _Loop, step: int, steps: int) -> Callable[[int], bool]:
        first, last = loop
        product = next((i for i in range(first, last + 1) if is_product(self._code[i])), last)

        def skipped(branch: int) -> bool:
            return step != (0 if branch < product else steps - 1)

        return skipped

    def _run(
        self, first: int, last: int, skipped: Callable[[int], bool] | None = None
    ) -> Iterator[Executed]:
        """Execute [first, last]; `skipped` decides about regions at the top level."""
        at, copies = first, 0
        region_end = -1
        while at <= last:
            loop = self._loop_at(at, first, last)
            if loop is not None:
                trips = self._trips.get(loop, 1)
                ahead = copies // max(1, self._copies(loop))
                for trip in range(trips):
                    issues = trip < trips - ahead
                    for each in self._run(*loop):
                        off = not issues and each.instruction.opcode.startswith(COPIES)
                        yield Executed(each.instruction, each.live and not off)
                at, copies = loop.last + 1, 0
                continue
            instruction = self._code[at]
            live = "!PT" not in instruction.guard and not instruction.operands.endswith(", !PT")
            # `, !PT` on a product only starts its accumulator at zero.
            live = live or is_product(instruction)
            copies += live and instruction.opcode.startswith(COPIES)
            yield Executed(instruction, live)
            if instruction.name == "EXIT" and not instruction.guard:
                return
            at, region_end = self._next(at, region_end, skipped)

    def _next(
        self, at: int, region_end: int, skipped: Callable[[int], bool] | None
    ) -> tuple[int, int]:
        """The index of the next instruction, and the end of the region that runs."""
        instruction = self._code[at]
        target = self._index.get(instruction.target) if instruction.target is not None else None
        if target is None or target <= at:
            return at + 1, region_end
        if not instruction.guard:
            return target, region_end
        other = self._code[target - 1]
        joined = self._index.get(other.target) if other.target is not None else None
        if joined is not None and joined > target and not other.guard:
            here, there = (at + 1, target - 1), (target, joined - 1)
            better = self._has_product(*there) - self._has_product(*here)
            longer = (here[1] - here[0]) - (there[1] - there[0])
            return (target if better > 0 or (better == 0 and longer > 0) else at + 1), region_end
        if skipped is not None and at > region_end:
            return (target, region_end) if skipped(at) else (at + 1, target)
        return at + 1, region_end

    def _loop_at(self, at: int, first: int, last: int) -> _Loop | None:
        """The loop inside [first, last], but not the whole of it, that starts here."""
        found = [
            loop
            for loop in self._loops
            if loop.first == at and loop.last <= last and loop != (first, last)
        ]
        return max(found, key=lambda loop: loop.last, default=None)

    def _has_product(self, first: int, last: int) -> bool:
        return self._has(_Loop(first, last), is_product)

    def _has(self, loop: _Loop, wanted: Callable[[Instruction], bool]) -> bool:
        return any(wanted(self._code[i]) for i in range(loop.first, loop.last + 1))

    def _copies(self, loop: _Loop) -> int:
        return sum(
            self._code[i].opcode.startswith(COPIES) and not self._code[i].operands.endswith(", !PT")
            for i in range(loop.first, loop.last + 1)
        )


def _loops(code: list[Instruction], index: dict[int, int]) -> list[_Loop]:
    """All loops in the order of their first instructions; a second back edge only widens one."""
    last: dict[int, int] = {}
    for at, each in enumerate(code):
        target = index.get(each.target) if each.target is not None else None
        if target is not None and target <= at:
            last[target] = at
    return [_Loop(*each) for each in sorted(last.items())]


def _contains(outer: _Loop, inner: _Loop) -> bool:
    return outer.first <= inner.first and inner.last <= outer.last and outer != inner
