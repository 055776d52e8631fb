"""The structural model of kernels whose warps have roles, on machine code made by hand."""

import dataclasses
import re

import pytest

from svilm_fast.bench.static import machine
from svilm_fast.bench.static.structure import structure_of
from svilm_fast.bench.static.tile_trace import Executed, trace_roles
from svilm_fast.bench.static.timeline import BlockTimeline, Footprint
from svilm_fast.kernels.machine_code import parse
from svilm_fast.kernels.registry import RoleWork, TileWork

# A main role and workers of one block, which alone fits an SM.
BLOCK = Footprint(warps=12, blocks_per_sm=1)
PRODUCT = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"
FLOPS = 2.0 * 64 * 128 * 16
STEPS = 8
STAGE_BYTES = 0x400
FILLED, FREED, TURNS = "0x100", "0x200", ("0x300", "0x308")


def listing(*lines):
    """Instructions from lines; `name:` marks the next one, and `BRA name` jumps there."""
    labels, code = {}, []
    for line in lines:
        if line.endswith(":"):
            labels[line[:-1]] = hex(16 * len(code))
        else:
            code.append(line)
    text = ""
    for i, line in enumerate(code):
        line = re.sub(r"BRA (\w+)$", lambda m: f"BRA {labels[m[1]]}", line)
        text += f"        /*{16 * i:04x}*/                   {line} ;    /* 0x000fe20000000f00 */\n"
    found = parse(text)
    assert len(found) == len(code)
    return found


def wait(place):
    return f"SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4+{place}], R6"


def arrive(place):
    return f"@!P2 SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R12+URZ+{place}], RZ"


def load(number):
    """Loads to registers, each with a use at once."""
    return ["LDG.E R40, desc[UR10][R8.64]", "FADD R2, R40, R2"] * number


def group(number, epilogue, late, loads):
    """A group of four warps: a product of STEPS steps in its turn, then an epilogue."""
    passed = [arrive(TURNS[1 - number])]
    return [
        "MOV R1, R2",
        f"loop{number}:",
        wait(TURNS[number]),
        *[line for _ in range(STEPS) for line in (wait(FILLED), PRODUCT)],
        *([] if late else passed),
        "WARPGROUP.DEPBAR.LE gsb0, 0x0",
        arrive(FREED),
        *["FADD R2, R3, R4"] * epilogue,
        *load(loads),
        *(passed if late else []),
        f"@P0 BRA loop{number}",
        "STG.E desc[UR60][R24.64], R31",
    ]


COPYING = [
    "copies:",
    wait(FREED),
    f"@!P1 IMAD.MOV.U32 R6, RZ, RZ, {hex(STAGE_BYTES)}",
    f"@!P1 SYNCS.ARRIVE.TRANS64 RZ, [UR4+{FILLED}], R6",
    "UTMALDG.2D [UR8], [UR12]",
    "@P0 BRA copies",
]


def kernel(*, epilogue=300, late=False, loads=0, copying=COPYING):
    """Two groups that take turns and a copying warp, as the compiler arranges them."""
    return listing(
        "@!P0 BRA main",
        "workers:", "BAR.SYNC.DEFER_BLOCKING 0x1", "@P0 BRA workers", "BRX R6 -0x1e0",
        *group(1, epilogue, late, loads), "BRA workers",
        *copying, "BRA workers",
        "main:", *group(0, epilogue, late, loads),
        "EXIT",
    )  # fmt: skip


GROUP = RoleWork(4, share=0.5)
COPIES = RoleWork(1, share=STEPS, copies=1, stages=4 * STEPS)


def work(copies=COPIES, program_tiles=16):
    return TileWork(STEPS * FLOPS, roles=(GROUP, copies, GROUP), program_tiles=program_tiles)


def model(code, of=None):
    return structure_of(code, BLOCK, of or work())


def clocks(structure):
    return [int(each) for each in structure.clocks.split("/")]


def names(executed):
    return [each.instruction.name for each in executed]


def test_roles_are_the_loops_with_products_or_copies_in_their_order():
    first, copies, second = trace_roles(kernel(epilogue=2), work().roles)
    assert names(first.before) == names(second.before) == ["MOV"]
    assert names(first.iteration) == names(second.iteration)
    assert names(first.iteration).count("HGMMA") == STEPS
    assert names(first.after) == ["STG", "BRA"]
    assert names(second.after) == ["STG", "EXIT"]
    assert names(copies.iteration) == ["SYNCS", "IMAD", "SYNCS", "UTMALDG", "BRA"]
    with pytest.raises(ValueError, match="3 roles with a loop, 2 declared"):
        trace_roles(kernel(), (GROUP, COPIES))
    with pytest.raises(ValueError, match="0 loops inside a role's loop, 1 declared"):
        trace_roles(kernel(), (GROUP, dataclasses.replace(COPIES, trips=(3,)), GROUP))


def test_resources_of_a_tile_are_those_of_all_roles():
    found = model(kernel(epilogue=300))
    assert found.products_percent == 100
    assert found.tensor_clocks == STEPS * FLOPS / machine.TENSOR_FLOPS_PER_CLOCK
    assert found.l2_bytes == STEPS * STAGE_BYTES
    assert found.smem_bytes == STEPS * (STAGE_BYTES + (64 + 128) * 32)
    of_group = 1 + 2 * STEPS + 1 + 1 + 1 + 300 + 1
    assert found.issue_slots == of_group + STEPS * 5
    texts = found.roles.split("; ")
    assert [text.split(":")[0] for text in texts] == ["4 warps", "1 warps", "4 warps"]
    assert "products" in texts[0]
    assert "products" not in texts[1]
    # The instructions between the last product and the wait for all: the arrival.
    assert texts[0].endswith(" products 2:1")


def test_groups_that_take_turns_overlap_and_serialised_roles_do_not():
    """The planted regression: the turn is passed on after the epilogue instead of before."""
    kept, lost = model(kernel(epilogue=300)), model(kernel(epilogue=300, late=True))
    tensor = STEPS * FLOPS / machine.TENSOR_FLOPS_PER_CLOCK / machine.TENSOR_EFFICIENCY
    assert (kept.bound, lost.bound) == ("tensor", "turn")
    epilogue = 300 / machine.ISSUE_EFFICIENCY.central
    added = clocks(lost)[1] - clocks(kept)[1]
    assert added == pytest.approx(epilogue / machine.ACHIEVED.central, rel=0.2)
    assert all(a > b for a, b in zip(clocks(lost), clocks(kept), strict=True))
    assert clocks(kept)[1] >= tensor / machine.ACHIEVED.central
    # Apart from the turn, nothing changed.
    same = ("tensor_clocks", "issue_slots", "l2_bytes", "smem_bytes", "mufu_clocks")
    assert all(getattr(kept, name) == getattr(lost, name) for name in same)


def test_waits_of_a_group_bound_by_half_of_its_path():
    found = model(kernel(epilogue=100, loads=4))
    assert found.bound == "path"
    waited = 4 * machine.COPY_CLOCKS.central / 2
    assert waited < clocks(found)[1] * machine.ACHIEVED.central < 2 * waited


def test_a_short_ring_bounds():
    one = dataclasses.replace(COPIES, stages=1)
    assert model(kernel(), work(one)).bound == "ring"
    assert clocks(model(kernel(), work(one)))[1] > STEPS * machine.TMA_CLOCKS.central


def test_copies_that_many_tiles_share():
    resident = [
        f"@!P1 IMAD.MOV.U32 R6, RZ, RZ, {hex(STAGE_BYTES)}",
        "@!P1 SYNCS.ARRIVE.TRANS64 RZ, [UR4+0x400], R6",
        "UTMALDG.2D [UR8], [UR12]",
    ]
    code = kernel(copying=[COPYING[0], *resident, *COPYING[1:]])
    # The copy is in every step, but is made in those of the first of 16 tiles only.
    shared = dataclasses.replace(COPIES, shared_bytes=STAGE_BYTES, shared_by=16 * STEPS)
    everywhere = STEPS * STAGE_BYTES
    assert model(code).l2_bytes == 2 * everywhere
    assert model(code, work(shared)).l2_bytes == everywhere + STAGE_BYTES // (16 * STEPS)


def test_the_tiles_of_a_program_share_its_start():
    many, few = (clocks(model(kernel(), work(program_tiles=n)))[1] for n in (16, 4))
    start = machine.BLOCK_START_CLOCKS.central + machine.TMA_CLOCKS.central
    assert (few - many) * machine.ACHIEVED.central >= start * (1 / 4 - 1 / 16)


def passing(held, *, registers=False):
    """Every tile goes through both roles; the second reads what the first has stored.

    With `registers`, the addresses of their barriers are in registers, set before the loops, and
    in one role the last is set again in every iteration.
    """

    def role(number):
        taken, passed = TURNS[number], TURNS[1 - number]
        before, inside = [], []
        if registers:
            before = [f"UIADD3 UR37, UR4, {taken}, URZ", f"VIADD R12, R13, {passed}"]
            inside = [] if number else ["UMOV UR37, UR3", before[0]]
        return [
            *before, f"loop{number}:", wait(FILLED), PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x0",
            *["FADD R2, R3, R4"] * 200, *inside,
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR37], R6" if registers else wait(taken),
            *load(held),
            "@!P2 SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R12+URZ], RZ" if registers else arrive(passed),
            f"@P0 BRA loop{number}",
        ]  # fmt: skip

    return listing(
        "@!P0 BRA main",
        "workers:", "BAR.SYNC.DEFER_BLOCKING 0x1", "@P0 BRA workers", "BRX R6 -0x1e0",
        *role(1), "BRA workers",
        *COPYING, "BRA workers",
        "main:", *role(0), "EXIT",
    )  # fmt: skip


def model_of_passing(code):
    each = RoleWork(4)
    copies = RoleWork(1, copies=1, stages=32)
    return model(code, TileWork(2 * FLOPS, roles=(each, copies, each), program_tiles=16))


def test_roles_that_pass_tiles_on_hold_one_buffer_in_turn():
    short, long = (model_of_passing(passing(held)) for held in (0, 3))
    assert (short.bound, long.bound) == ("issue", "turn")
    assert clocks(long)[1] * machine.ACHIEVED.central > 2 * 3 * machine.COPY_CLOCKS.central
    assert short.products_percent == long.products_percent == 100


def turns(structure):
    return [int(turn) for turn in re.findall(r"turn (\d+)", structure.roles)]


def test_a_barrier_whose_address_is_in_a_register_is_the_same_barrier():
    plain, found = (turns(model_of_passing(passing(3, registers=on))) for on in (False, True))
    assert min(plain) > 3 * machine.COPY_CLOCKS.central
    # Two instructions more are in the loop of one role.
    assert found == pytest.approx(plain, abs=5)


def test_a_running_pointer_is_no_barrier_of_a_turn():
    """Every iteration adds to it: it goes through a ring."""
    waits = (f"SYNCS.PHASECHK.TRANS64.TRYWAIT P1, {at}, R6" for at in ("[UR37]", "[R5+URZ+-0x10]"))
    code = listing("UIADD3 UR37, UR4, 0x300, URZ", "UIADD3 UR37, UR37, 0x8, URZ", *waits)
    block = BlockTimeline(code, BLOCK, "central")
    block.follow(Executed(each, True) for each in code)
    assert block.barriers == []


def test_the_model_of_roles_is_deterministic_and_ordered():
    first, second = model(kernel()), model(kernel())
    assert first == second
    for name in ("tflops", "floor_percent"):
        values = [float(each) for each in getattr(first, name).split("/")]
        assert values == sorted(values)
