"""The structural model on machine code made by hand: the instructions of a tile, and its time."""

import dataclasses
import re

import pytest

from svilm_fast.bench.static import machine
from svilm_fast.bench.static.structure import Structure, structure_of
from svilm_fast.bench.static.tile_trace import trace_tile
from svilm_fast.bench.static.timeline import Footprint
from svilm_fast.kernels.machine_code import parse
from svilm_fast.kernels.registry import TileWork

ONE_BLOCK, TWO_BLOCKS = Footprint(warps=8, blocks_per_sm=1), Footprint(warps=8, blocks_per_sm=2)
FLOPS = 2.0 * 128 * 128 * 16
PRODUCT = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"
COPY = ("LDGSTS.E.BYPASS.128 [R6], desc[UR10][R8.64]", "LDGDEPBAR")
DESCRIBED_COPY = (
    "@P0 MOV R3, 0x8000",
    "@P0 SYNCS.ARRIVE.TRANS64 RZ, [UR4+0x18000], R3",
    "@UP0 UTMALDG.2D [UR16], [UR30]",
)
DESCRIBED_WAIT = "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR13+0x18000], R6"
WAIT_PRODUCTS = "WARPGROUP.DEPBAR.LE gsb0, 0x0"


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
        text += "                                            /* 0x000fe40000000f00 */\n"
    found = parse(text)
    assert len(found) == len(code)
    return found


def executed(trace):
    return [
        f"{each.instruction.opcode} {each.instruction.operands}".strip()
        for each in trace
        if each.live
    ]


def model(code, work, footprint=ONE_BLOCK):
    return structure_of(code, footprint, work)


def clocks(structure):
    return [int(each) for each in structure.clocks.split("/")]


def test_predicates_and_targets_are_parsed():
    code = listing("top:", "@!UP2 UIADD3 UR4, UR4, -UR9, URZ", "@P0 BRA top", "MOV R3, 0x8000")
    assert [each.guard for each in code] == ["@!UP2", "@P0", ""]
    assert [each.name for each in code] == ["UIADD3", "BRA", "MOV"]
    assert [each.target for each in code] == [None, 0, None]


def test_a_program_is_a_tile_and_waiting_code_after_the_exit_is_not_followed():
    code = listing("@!P0 BRA slow", "IADD3 R1", "EXIT", "slow:", "FADD R2", "BRA slow")
    trace = trace_tile(code, TileWork(1.0, looped=False))
    assert trace.prologue == []
    assert [each.instruction.name for each in trace.tile] == ["BRA", "IADD3", "EXIT"]


def test_the_tile_loop_is_the_outermost_loop_with_products_and_inner_loops_run_as_declared():
    code = listing(
        "MOV R0",
        "other:", "LDG.E R1, [R2]", "@P0 BRA other",
        "tile:", "FADD R1",
        "depth:", PRODUCT, "@P0 BRA depth",
        "FMUL R1", "@P1 BRA tile",
        "EXIT",
    )  # fmt: skip
    trace = trace_tile(code, TileWork(1.0, trips=(3,)))
    assert executed(trace.prologue) == ["MOV R0", "LDG.E R1, [R2]", "BRA 0x10"]
    names = [line.split()[0].split(".")[0] for line in executed(trace.tile)]
    assert names == ["FADD", *["HGMMA", "BRA"] * 3, "FMUL", "BRA"]
    with pytest.raises(ValueError, match="1 loops inside a tile, 0 declared"):
        trace_tile(code, TileWork(1.0))
    with pytest.raises(ValueError, match="no loop with products"):
        trace_tile(listing("IADD3 R1", "EXIT"), TileWork(1.0))


def test_in_a_flattened_loop_the_start_and_the_end_of_a_tile_run_once():
    code = listing(
        "step:", "@P0 BRA go",
        "IMAD R1",
        "go:", PRODUCT, "@P1 BRA next",
        "MUFU.EX2 R2", "@P3 BRA skip", "FADD R3", "skip:", "STG.E [R4], R2",
        "next:", "@P2 BRA step",
        "EXIT",
    )  # fmt: skip
    tile = executed(trace_tile(code, TileWork(1.0, steps=3)).tile)
    names = [line.split()[0].split(".")[0] for line in tile if not line.startswith("BRA")]
    assert names == ["IMAD", "HGMMA", "HGMMA", "HGMMA", "MUFU", "FADD", "STG"]


def test_of_two_alternatives_the_one_with_products_runs_else_the_shorter():
    code = listing(
        "@P0 BRA work",
        "MOV R0", "BRA end",
        "work:", PRODUCT, "FADD R1",
        "@P1 BRA rare",
        "FADD R2", "BRA end",
        "rare:", "FADD R3", "FADD R4", "FADD R5",
        "end:", "EXIT",
    )  # fmt: skip
    tile = executed(trace_tile(code, TileWork(1.0, looped=False)).tile)
    assert "MOV R0" not in tile
    assert "FADD R2" in tile
    assert "FADD R3" not in tile
    short_else = listing(
        "@P1 BRA rare", "FADD R2", "FADD R3", "FADD R4", "BRA end",
        "rare:", "FADD R5", "end:", "EXIT",
    )  # fmt: skip
    assert executed(trace_tile(short_else, TileWork(1.0, looped=False)).tile) == [
        "BRA 0x50", "FADD R5", "EXIT",
    ]  # fmt: skip


def test_a_pipelined_loop_issues_no_copies_past_its_end():
    code = listing(
        *COPY, *COPY,
        "depth:", "DEPBAR.LE SB0, 0x1", PRODUCT, *COPY, "@P0 BRA depth",
        "EXIT",
    )  # fmt: skip
    work = TileWork(5 * FLOPS, looped=False, trips=(5,))
    assert executed(trace_tile(code, work).tile).count("LDGDEPBAR") == 7
    structure = model(code, work)
    # Two steps ahead, and three of five steps copy: 5 x 16 bytes of 256 threads.
    assert structure.l2_bytes == 5 * 16 * 256
    assert structure.products_percent == 100


def test_a_predicate_that_is_never_true_only_takes_an_issue_slot():
    code = listing("@!PT LDS RZ, [RZ]", f"{COPY[0]}, !PT", COPY[1], "EXIT")
    structure = model(code, TileWork(1.0, looped=False))
    assert (structure.smem_bytes, structure.l2_bytes) == (0, 0)
    assert structure.issue_slots == 4 * 8 // 4


def test_resources_of_a_tile():
    code = listing(
        "tile:", PRODUCT, WAIT_PRODUCTS,
        "HGMMA.64x32x16.F32.BF16 R24, R120, gdesc[UR12], R24, gsb0", WAIT_PRODUCTS,
        "MUFU.EX2 R1, R1", "LDS.128 R4, [R8]", "STSM.16.M88.4 [R8], R4", "SHFL.BFLY R1",
        "STG.E.64 [R4], R2", "LDG.E.128 R24, desc[UR4][R8.64]", "LDG.E R28, desc[UR4][R8.64]",
        "UTMASTG.2D [UR28], [UR24]",
        "@P2 BRA tile", "EXIT",
    )  # fmt: skip
    structure = model(code, TileWork(FLOPS), Footprint(8, 1, described_store_bytes=4096))
    assert structure.tensor_clocks == 2 * (64 * 128 + 64 * 32) * 16 * 2 / 4096
    assert structure.mufu_clocks == 256 // 16
    assert structure.issue_slots == 13 * 2
    operands = 2 * (64 + 128) * 32 + 2 * 32 * 32
    assert structure.smem_bytes == operands + 256 * (16 + 16 + 4)
    assert structure.l2_bytes == 256 * (8 + 16) + 4096
    assert structure.products_percent == 125
    # All but the wait for each product, which is still in flight.
    assert structure.exposed_slots == (13 - 2) * 2


def test_a_product_of_one_warp_is_not_asynchronous():
    code = listing("tile:", *["HMMA.16816.F32.BF16 R4, R8, R12, R4"] * 64, "@P2 BRA tile", "EXIT")
    structure = model(code, TileWork(2.0 * 16 * 8 * 16 * 64 * 8))
    assert structure.products_percent == 100
    assert structure.tensor_clocks == 64 * 8 * 2 * 16 * 8 * 16 / 4096
    assert structure.exposed_slots == structure.issue_slots


def described_loop(order):
    """A flattened loop with one TMA copy in flight; a tile has three steps and an end."""
    return listing(
        *DESCRIBED_COPY,
        "step:",
        *order,
        WAIT_PRODUCTS,
        "@P1 BRA next",
        *["FADD R2"] * 200,
        "next:", "@P2 BRA step",
        "EXIT",
    )  # fmt: skip


def test_copies_are_followed_through_a_ring_of_barriers():
    ahead = described_loop((*DESCRIBED_COPY, DESCRIBED_WAIT, PRODUCT))
    late = described_loop((DESCRIBED_WAIT, PRODUCT, *DESCRIBED_COPY))
    work = TileWork(3 * FLOPS, steps=3)
    # A step has 8 instructions; the end of a tile, 200 more, stands once between issue and wait.
    assert model(ahead, work).copy_distances == "9:2 209:1"
    assert model(late, work).copy_distances == "4:2 204:1"
    assert model(ahead, work).l2_bytes == 3 * 0x8000


def test_the_bytes_of_a_copy_must_be_a_constant():
    code = listing("MOV R3, R4", *DESCRIBED_COPY[1:], "EXIT")
    with pytest.raises(ValueError, match="bytes of the copy at 0x10"):
        model(code, TileWork(1.0, looped=False))


def pointer_tile(*body):
    return listing(*COPY, "tile:", *body, "@P2 BRA tile", "EXIT")


BODY = ("DEPBAR.LE SB0, 0x0", *COPY, PRODUCT, *["FADD R1"] * 300, WAIT_PRODUCTS)


def test_a_lost_prefetch_shows():
    kept = model(pointer_tile(*BODY), TileWork(FLOPS))
    lost = model(
        pointer_tile(PRODUCT, *["FADD R1"] * 300, WAIT_PRODUCTS, *COPY, BODY[0]), TileWork(FLOPS)
    )
    assert (kept.copy_distances, lost.copy_distances) == ("304:1", "1:1")
    assert kept.waited_clocks == 0
    assert lost.waited_clocks == pytest.approx(machine.COPY_CLOCKS.central, abs=5)
    assert all(a > b for a, b in zip(clocks(lost), clocks(kept), strict=True))


def test_a_load_to_registers_is_awaited_by_its_first_use():
    load = "LDG.E.128 R200, desc[UR10][R238.64+0x400]"
    kept = pointer_tile("STS.128 [R8], R200", load, *["FADD R1"] * 300, PRODUCT, WAIT_PRODUCTS)
    lost = pointer_tile(load, "FADD R1", "FADD R2, R202, R2", *["FADD R1"] * 300, PRODUCT)
    assert model(kept, TileWork(FLOPS)).copy_distances == "304:1"
    assert model(kept, TileWork(FLOPS)).waited_clocks == 0
    assert model(lost, TileWork(FLOPS)).copy_distances == "2:1"
    assert model(lost, TileWork(FLOPS)).waited_clocks > 400


def test_a_repeated_product_shows():
    once = model(pointer_tile(*BODY), TileWork(FLOPS))
    twice = model(pointer_tile(*BODY, PRODUCT, WAIT_PRODUCTS), TileWork(FLOPS))
    assert (once.products_percent, twice.products_percent) == (100, 200)
    assert twice.tensor_clocks == 2 * once.tensor_clocks
    assert all(a > b for a, b in zip(clocks(twice), clocks(once), strict=True))


def test_a_colder_tile_start_shows():
    """The copies of a tile start after the end of the last one, instead of before it."""
    work = TileWork(3 * FLOPS, steps=3)
    warm = model(described_loop((*DESCRIBED_COPY, DESCRIBED_WAIT, PRODUCT)), work, TWO_BLOCKS)
    cold_code = listing(
        "tile:", *DESCRIBED_COPY,
        "step:", *DESCRIBED_COPY, DESCRIBED_WAIT, PRODUCT, WAIT_PRODUCTS, "@P1 BRA step",
        *["FADD R2"] * 200,
        "@P2 BRA tile", "EXIT",
    )  # fmt: skip
    cold = model(cold_code, TileWork(3 * FLOPS, trips=(3,)), TWO_BLOCKS)
    assert cold.l2_bytes == warm.l2_bytes
    assert cold.waited_clocks > warm.waited_clocks + 300
    assert clocks(cold)[1] > clocks(warm)[1]


def test_more_blocks_hide_what_a_lone_block_waits_for():
    code = pointer_tile(PRODUCT, WAIT_PRODUCTS, *["FADD R1"] * 300, *COPY, BODY[0])
    by_blocks = [
        clocks(model(code, TileWork(FLOPS), Footprint(8, blocks)))[1] for blocks in (1, 2, 3)
    ]
    assert by_blocks == sorted(set(by_blocks), reverse=True)
    assert model(code, TileWork(FLOPS)).bound == "serial"
    assert model(code, TileWork(FLOPS), TWO_BLOCKS).bound == "issue"


def test_memory_and_the_sustained_rate_bound_a_tile():
    code = pointer_tile(*BODY)
    streamed = model(code, TileWork(FLOPS, memory_bytes=1e6), TWO_BLOCKS)
    assert streamed.bound == "dram"
    per_sm = machine.DRAM_RATE.central / machine.SMS / machine.CLOCK_HZ.central
    assert clocks(streamed)[1] == pytest.approx(1e6 / per_sm / machine.ACHIEVED.central, rel=0.01)
    products = pointer_tile(*[PRODUCT] * 400, WAIT_PRODUCTS)
    best = model(products, TileWork(400 * FLOPS)).tflops.split("/")[2]
    assert float(best) <= machine.SUSTAINED_FLOPS.optimistic / 1e12


def test_the_model_is_deterministic_and_ordered():
    first, second = (model(pointer_tile(*BODY), TileWork(FLOPS)) for _ in range(2))
    assert first == second
    for name in ("tflops", "floor_percent"):
        values = [float(each) for each in getattr(first, name).split("/")]
        assert values == sorted(values)
    assert set(dataclasses.asdict(Structure()).values()) == {0, ""}
