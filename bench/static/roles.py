"""The structural model of a kernel whose warps have roles: what each role takes per tile.

The roles overlap. A tile takes at least as long as the scarcest resource of all roles together, as
what its roles do in turn, as the whole path of a role with products (divided by the number of
groups that share the tiles), and as the ring of copies needs to be filled again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from svilm_fast.bench.static import machine
from svilm_fast.bench.static.tile_trace import RoleTrace, trace_roles
from svilm_fast.bench.static.timeline import BarrierUse, BlockTimeline, Footprint
from svilm_fast.kernels.machine_code import Instruction
from svilm_fast.kernels.registry import RoleWork, TileWork

# Iterations that run before the one that counts.
_WARM_ITERATIONS = 3
# A stage is free again when the product of the next one has been issued and its own is done.
_STAGES_IN_USE = 2


@dataclass(frozen=True)
class Role:
    """One role, alone on its SM, with all copies arrived.

    Attributes:
        used, exposed, distances: of an iteration, as in `BlockTimeline`; `distances` are those from
            the issue of a product to the wait for it.
        before, path, after: clocks before the loop, of an iteration, and after the loop.
        uses: what an iteration does at barriers; clocks since its start.
    """

    work: RoleWork
    used: Counter[str]
    exposed: int
    distances: Counter[int]
    before: float
    path: float
    after: float
    uses: tuple[BarrierUse, ...]

    @property
    def multiplies(self) -> bool:
        """Whether the role has products."""
        return self.used["flops"] > 0

    def per_tile(self, what: str) -> float:
        """What a tile takes of a resource."""
        amount = float(self.used[what])
        if what in ("l2", "smem"):
            amount -= self.work.shared_bytes
            amount += self.work.shared_bytes / self.work.shared_by / self.work.share
        return self.work.share * amount

    @property
    def slots(self) -> float:
        """Instructions of a tile per scheduler; a single warp fills the slots of one."""
        each = max(1.0, self.work.warps / machine.SCHEDULERS)
        return self.work.share * self.used["instructions"] * each


class RoleTime(NamedTuple):
    """Clocks per tile before the achieved share, and what bounds them."""

    clocks: float
    bound: str


def roles_of(
    code: Sequence[Instruction], footprint: Footprint, work: TileWork, case: str
) -> list[Role]:
    """Every role of a kernel; raises ValueError like `trace_roles`."""
    traces = trace_roles(code, work.roles)
    return [
        _role(code, footprint, role, trace, case)
        for role, trace in zip(work.roles, traces, strict=True)
    ]


def used_per_tile(roles: Iterable[Role]) -> Counter[str]:
    """What a tile takes of every resource."""
    total = Counter[str]()
    for role in roles:
        for what in role.used:
            total[what] += round(role.per_tile(what))
    return total


def time_of(
    roles: Sequence[Role], work: TileWork, resources: dict[str, float], case: str
) -> RoleTime:
    """Clocks of a tile, its share of the program's start and end included.

    `resources`: clocks per tile of what all roles share.
    """
    groups = [role for role in roles if role.multiplies]
    bounds = {
        **resources,
        "turn": sum(
            role.work.share * (clocks + _of(machine.BARRIER_CLOCKS, case))
            for role in groups
            if (clocks := turn_clocks(role, groups))
        ),
        "path": max((role.work.share * role.path for role in groups), default=0.0),
        "ring": max(_ring_clocks(role, resources["tensor"], case) for role in roles),
    }
    bound, most = max(bounds.items(), key=lambda each: each[1])
    start = _of(machine.BLOCK_START_CLOCKS, case) + _of(machine.TMA_CLOCKS, case)
    start += max(role.before for role in roles)
    end = max((role.path - most + role.after for role in groups), default=0.0)
    return RoleTime(most + (start + max(0.0, end)) / work.program_tiles, bound)


def turn_clocks(role: Role, roles: Iterable[Role]) -> float:
    """Clocks of an iteration in which this role holds what the roles with products hold in turn.

    That are the tensor cores, or a buffer between two roles. The time lasts from the wait for a
    barrier at which another role arrives to the arrival at a barrier for which another role waits.
    """
    others = [use for other in roles if other is not role for use in other.uses]
    arrived_at = {use.place for use in others if not use.waits}
    waited_for = {use.place for use in others if use.waits}
    starts = [use.clock for use in role.uses if use.waits and use.place in arrived_at]
    ends = [use.clock for use in role.uses if not use.waits and use.place in waited_for]
    if not starts or not ends:
        return 0.0
    return max(min((end - start) % role.path or role.path for end in ends) for start in starts)


def role_text(roles: Sequence[Role]) -> str:
    """The roles per tile, for the table."""
    return "; ".join(_text(role, roles) for role in roles)


def _text(role: Role, roles: Sequence[Role]) -> str:
    parts = {
        "issue": role.slots,
        "tensor": role.per_tile("tensor work") / machine.TENSOR_FLOPS_PER_CLOCK,
        "mufu": role.per_tile("mufu") / machine.MUFU_PER_CLOCK,
        "smem": role.per_tile("smem") + role.per_tile("operands"),
        "l2": role.per_tile("l2"),
    }
    text = f"{role.work.warps} warps: " + " ".join(f"{k} {round(v)}" for k, v in parts.items())
    if role.multiplies:
        text += f" path {round(role.work.share * role.path)}"
        groups = [each for each in roles if each.multiplies]
        text += f" turn {round(role.work.share * turn_clocks(role, groups))} products "
        text += " ".join(f"{d}:{n}" for d, n in sorted(role.distances.items()))
    return text


def _role(
    code: Sequence[Instruction], footprint: Footprint, work: RoleWork, trace: RoleTrace, case: str
) -> Role:
    alone = Footprint(work.warps, 1, footprint.described_store_bytes)
    block = BlockTimeline(code, alone, case)
    block.follow(trace.before)
    before = block.clock
    for _ in range(_WARM_ITERATIONS):
        block.follow(trace.iteration)
    start = block.clock
    block.reset()
    block.follow(trace.iteration)
    end = block.clock
    counted = (block.used, block.exposed, block.product_distances)
    uses = tuple(use._replace(clock=use.clock - start) for use in block.barriers)
    block.reset()
    block.follow(trace.after)
    return Role(work, *counted, before, end - start, block.clock - end, uses)


def _ring_clocks(role: Role, tensor: float, case: str) -> float:
    """A stage is filled again after it was freed: its copy takes as long as any other."""
    if not role.work.stages:
        return 0.0
    copies = role.work.share * role.work.copies
    in_use = _STAGES_IN_USE * tensor / copies
    return copies / role.work.stages * (_of(machine.TMA_CLOCKS, case) + in_use)


def _of(bracket: machine.Bracket, case: str) -> float:
    return float(getattr(bracket, case))
