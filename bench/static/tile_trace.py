"""The instructions that a warp executes for one tile, in order, from a kernel's machine code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from svilm_fast.kernels.machine_code import Instruction
from svilm_fast.kernels.registry import TileWork

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
    end = max((i for i, each in enumerate(instructions) if each.name == "EXIT"), default=-1)
    return _Walker(list(instructions[: end + 1]), work).trace()


class _Walker:
    def __init__(self, code: list[Instruction], work: TileWork) -> None:
        self._code = code
        self._index = {each.address: i for i, each in enumerate(code)}
        self._work = work
        self._loops = _loops(code, self._index)
        self._tile_loop: _Loop | None = None
        if work.looped:
            outermost = [loop for loop in self._loops if self._has_product(*loop)]
            if not outermost:
                raise ValueError("no loop with products: declare a program as the tile")
            self._tile_loop = max(outermost, key=lambda loop: loop.last - loop.first)
        inside = self._tile_loop or _Loop(-1, len(code))
        inner = [each for each in self._loops if _contains(inside, each)]
        if len(inner) != len(work.trips):
            raise ValueError(
                f"{len(inner)} loops inside a tile, {len(work.trips)} declared: the compiler "
                "unrolled or kept a loop; correct the op's `tiles`"
            )
        self._trips = dict(zip(inner, work.trips, strict=True))

    def trace(self) -> TileTrace:
        if self._tile_loop is None:
            return TileTrace([], list(self._run(0, len(self._code) - 1)))
        first, last = self._tile_loop
        prologue = list(self._run(0, first - 1))
        tile: list[Executed] = []
        for step in range(self._work.steps):
            tile += self._run(first, last, self._skip(step) if self._work.steps > 1 else None)
        return TileTrace(prologue, tile)

    def _skip(self, step: int) -> Callable[[int], bool]:
        assert self._tile_loop is not None
        first, last = self._tile_loop
        product = next(i for i in range(first, last + 1) if is_product(self._code[i]))

        def skipped(branch: int) -> bool:
            return step != (0 if branch < product else self._work.steps - 1)

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
        return any(is_product(self._code[i]) for i in range(first, last + 1))

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
