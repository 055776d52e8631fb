"""The structural model: resources of a tile from its machine code, and the time they predict.

Predicted, not measured. `machine.py` holds the assumed numbers, `tile_trace.py` the rules by which
the instructions of a tile are found, `timeline.py` the time of a lone block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from svilm_fast.bench.static import machine
from svilm_fast.bench.static.roles import role_text, roles_of, time_of, used_per_tile
from svilm_fast.bench.static.tile_trace import trace_tile
from svilm_fast.bench.static.timeline import BlockTimeline, Footprint
from svilm_fast.kernels.machine_code import Instruction
from svilm_fast.kernels.registry import TileWork

# The start of `bound` where the model does not understand the machine code.
NOT_MODELLED = "not modelled"
# Tiles that run before the one that counts, so that copies ahead are under way.
_WARM_TILES = 3


@dataclass(frozen=True)
class Structure:
    """Resources of one tile of one block, and the prediction.

    Attributes:
        products_percent: FLOPs of the executed products per 100 needed ones.
        tensor_clocks, mufu_clocks: at the peak rates of an SM.
        issue_slots: instructions per scheduler.
        exposed_slots: those of them that issue while no product is in flight.
        smem_bytes: through shared memory, operands of products included.
        l2_bytes: copies, loads of 16 bytes, and stores.
        copy_distances: `distance:count`, instructions of a warp from a copy's issue to its wait.
        waited_clocks: that a lone block waits for copies (central).
        bound: the resource that takes longest; `serial` for a lone block that waits longer; of
            roles also `turn`, `path` and `ring` (`roles.py`).
        clocks: per tile and SM, `pessimistic/central/optimistic`.
        tflops: of the needed products on the whole GPU, likewise.
        roles: what each role takes per tile, where the warps have roles.
        floor_percent: share of the floor in the op's README, likewise.
    """

    products_percent: int = 0
    tensor_clocks: int = 0
    issue_slots: int = 0
    exposed_slots: int = 0
    mufu_clocks: int = 0
    smem_bytes: int = 0
    l2_bytes: int = 0
    copy_distances: str = ""
    waited_clocks: int = 0
    bound: str = ""
    clocks: str = ""
    tflops: str = ""
    floor_percent: str = ""
    roles: str = ""


class _Prediction(NamedTuple):
    """Clocks per tile and SM, what bounds them, TFLOP/s of the GPU, and share of the floor."""

    clocks: float
    bound: str
    tflops: float
    floor_share: float


def structure_of(code: Sequence[Instruction], footprint: Footprint, work: TileWork) -> Structure:
    """The model of one kernel for sm_90; raises ValueError like `trace_tile`."""
    if work.roles:
        return _structure_of_roles(code, footprint, work)
    trace = trace_tile(code, work)
    predictions = []
    for case in machine.Bracket._fields:
        block = BlockTimeline(code, footprint, case)
        if work.looped:
            block.follow(trace.prologue)
            for _ in range(_WARM_TILES):
                block.follow(trace.tile)
        start = block.clock
        block.reset()
        block.follow(trace.tile)
        serial = block.clock - start
        if not work.looped:
            serial += getattr(machine.BLOCK_START_CLOCKS, case)
        slots = block.used["instructions"] * footprint.warps / machine.SCHEDULERS
        resources = _resources(block.used, slots, work, case)
        bound, most = max(resources.items(), key=lambda each: each[1])
        if footprint.blocks_per_sm <= 1 and serial > most:
            bound = "serial"
        clocks = most + exposed_share(footprint.blocks_per_sm, case) * max(0.0, serial - most)
        predictions.append(_predict(clocks, bound, block.used, work, case))
        if case == "central":
            central = block
    return Structure(
        **_used(central.used, work),
        issue_slots=central.used["instructions"] * footprint.warps // machine.SCHEDULERS,
        exposed_slots=central.exposed * footprint.warps // machine.SCHEDULERS,
        copy_distances=" ".join(f"{d}:{n}" for d, n in sorted(central.distances.items())),
        waited_clocks=round(central.waited),
        **_predicted(predictions),
    )


def _structure_of_roles(
    code: Sequence[Instruction], footprint: Footprint, work: TileWork
) -> Structure:
    predictions = []
    for case in machine.Bracket._fields:
        roles = roles_of(code, footprint, work, case)
        used = used_per_tile(roles)
        slots = sum(role.slots for role in roles)
        # All roles are one block, which cannot use every slot.
        resources = _resources(used, slots / getattr(machine.ISSUE_EFFICIENCY, case), work, case)
        time = time_of(roles, work, resources, case)
        predictions.append(_predict(time.clocks, time.bound, used, work, case))
        if case == "central":
            central = roles
    return Structure(
        **_used(used, work),
        issue_slots=round(sum(role.slots for role in central)),
        exposed_slots=round(
            sum(role.slots * role.exposed / role.used["instructions"] for role in central)
        ),
        roles=role_text(central),
        **_predicted(predictions),
    )


def exposed_share(blocks: int, case: str) -> float:
    """The share of what a lone block waits for that stays exposed with `blocks` on an SM."""
    return 1.0 if blocks <= 1 else min(1.0, float(getattr(machine.EXPOSED, case)) / blocks**2)


def _used(used: Counter[str], work: TileWork) -> dict[str, Any]:
    return {
        "products_percent": round(100 * used["flops"] / work.flops),
        "tensor_clocks": used["tensor work"] // machine.TENSOR_FLOPS_PER_CLOCK,
        "mufu_clocks": used["mufu"] // machine.MUFU_PER_CLOCK,
        "smem_bytes": used["smem"] + used["operands"],
        "l2_bytes": used["l2"],
    }


def _predicted(predictions: Sequence[_Prediction]) -> dict[str, Any]:
    return {
        "bound": predictions[1].bound,
        "clocks": _joined(each.clocks for each in predictions),
        "tflops": _joined(each.tflops for each in predictions),
        "floor_percent": _joined(100 * each.floor_share for each in predictions),
    }


def _joined(values: Iterable[float]) -> str:
    return "/".join(str(round(each)) for each in values)


def _resources(used: Counter[str], slots: float, work: TileWork, case: str) -> dict[str, float]:
    """Clocks of a tile by resource; `slots` are those of the instructions per scheduler."""
    per_clock = machine.SMS * getattr(machine.CLOCK_HZ, case)
    return {
        "tensor": used["tensor work"] / machine.TENSOR_FLOPS_PER_CLOCK / machine.TENSOR_EFFICIENCY,
        "issue": slots,
        "mufu": used["mufu"] / machine.MUFU_PER_CLOCK,
        "smem": (used["smem"] + used["operands"]) / machine.SHARED_BYTES_PER_CLOCK,
        "l2": used["l2"] * per_clock / getattr(machine.L2_RATE, case),
        "dram": work.memory_bytes * per_clock / getattr(machine.DRAM_RATE, case),
    }


def _predict(
    clocks: float, bound: str, used: Counter[str], work: TileWork, case: str
) -> _Prediction:
    """The clocks divided by the achieved share, at most the sustained product rate."""
    per_clock = machine.SMS * getattr(machine.CLOCK_HZ, case)
    clocks /= getattr(machine.ACHIEVED, case)
    clocks = max(clocks, used["tensor work"] * per_clock / getattr(machine.SUSTAINED_FLOPS, case))
    seconds = clocks / per_clock
    floor = max(work.flops / machine.FLOOR_FLOPS, work.memory_bytes / machine.FLOOR_DRAM_RATE)
    return _Prediction(clocks, bound, work.flops / seconds / 1e12, floor / seconds)
