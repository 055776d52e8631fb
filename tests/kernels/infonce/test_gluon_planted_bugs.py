"""The interpreter of Gluon and its oracle catch every planted bug of the kernel."""

import pytest

from svilm_fast.kernels.infonce.fused import gluon_sums
from tests.kernels.gluon_machine import GluonFault
from tests.kernels.infonce.gluon_blocks import BLOCKS, MAIN, planted

COPY_WAIT = "mbarrier.wait(freed.index(stage), (copy // STAGES & 1) ^ 1)"
FULL_WAIT = "mbarrier.wait(filled.index(stage), copy // STAGES & 1)"
FREE = "mbarrier.arrive(freed.index((copy - 1) % STAGES), count=1)"
LAST_FREE = "mbarrier.arrive(freed.index((product * STEPS + STEPS - 1) % STAGES), count=1)"
LAST_WAIT = "dots = warpgroup_mma_wait(0, deps=(dots,))"
TURN_WAIT = "mbarrier.wait(turns.index(GROUP), (product // 2 & 1) ^ (1 - GROUP))"
TURN = "mbarrier.arrive(turns.index(1 - GROUP), count=1)"
EXPECT = "mbarrier.expect(filled.index(stage), videos.block_type.nbytes)"
TEXT_WAIT = "mbarrier.wait(text_filled.index(step), texts_phase, pred=new_texts)"
NEW_TEXTS = "            product,\n            product == GROUP,\n"
INTO = "                ring.index(stage),\n            )"
STORE = "shared_sum.store(total)"
ANNOUNCE = "mbarrier.arrive(summed, count=1)"
ZEROS = "dots = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=layout)"

# Text -> a plausible mistake instead, and the kinds of fault that it may cause.
SYNCHRONISATION_BUGS = {
    "no wait for a full stage": ({FULL_WAIT: "pass"}, "race"),
    "no wait for the texts": ({TEXT_WAIT: "pass"}, "race"),
    "only group 1 waits for the texts": (
        {NEW_TEXTS: NEW_TEXTS.replace("GROUP", "1")},
        "race",
    ),
    "no wait for an empty stage": ({COPY_WAIT: "pass"}, "race or barrier"),
    "no arrival at an empty stage": ({FREE: "pass"}, "deadlock"),
    "no arrival at the last empty stage": ({LAST_FREE: "pass"}, "deadlock"),
    "wrong phase of a full stage": ({FULL_WAIT: FULL_WAIT[:-1] + " ^ 1)"}, "race or deadlock"),
    "wrong phase of an empty stage": ({COPY_WAIT: COPY_WAIT.replace(" ^ 1", "")}, "deadlock"),
    "phase that ignores the ring": (
        {FULL_WAIT: FULL_WAIT.replace("copy // STAGES", "copy")},
        "race or deadlock",
    ),
    "freed before the product is waited for": (
        {"warpgroup_mma_wait(1, deps=(dots,))": "warpgroup_mma_wait(2, deps=(dots,))"},
        "race",
    ),
    "last stage freed before the wait": (
        {LAST_WAIT: "", LAST_FREE: f"{LAST_FREE}\n    {LAST_WAIT}"},
        "race",
    ),
    "sums before the last product ends": (
        {LAST_WAIT: LAST_WAIT.replace("(0,", "(1,")},
        "pending or race",
    ),
    "too few bytes expected": ({EXPECT: EXPECT[:-1] + " // 2)"}, "barrier"),
    "too many bytes expected": ({EXPECT: EXPECT[:-1] + " + 16)"}, "deadlock"),
    "bytes of the texts for the videos": (
        {EXPECT: EXPECT.replace("videos", "texts")},
        "barrier",
    ),
    "copy into the next stage": ({INTO: INTO.replace("stage", "(stage + 1) % STAGES")}, "race"),
    "texts copied for every product": (
        {"pred=product == 0": "pred=product >= 0"},
        "race or deadlock",
    ),
    "texts expected and never copied": (
        {"                pred=product == 0,\n": "                pred=product < 0,\n"},
        "deadlock",
    ),
    "the turn is not passed on": ({TURN: "pass"}, "deadlock"),
    "the turn is kept": ({TURN: TURN.replace("1 - GROUP", "GROUP")}, "deadlock or barrier or race"),
    "both groups wait for a first turn": (
        {TURN_WAIT: TURN_WAIT.replace(" ^ (1 - GROUP)", "")},
        "deadlock",
    ),
    "two arrivals expected at a stage": (
        {"init(freed.index(stage), count=1)": "init(freed.index(stage), count=2)"},
        "deadlock",
    ),
    "no wait for the other group's sums": ({"mbarrier.wait(summed, 0)": "pass"}, "race"),
    "sums announced before they are stored": (
        {f"{STORE}\n        {ANNOUNCE}": f"{ANNOUNCE}\n        {STORE}"},
        "race",
    ),
    "a barrier without a count": ({"    mbarrier.init(summed, count=1)\n": ""}, "barrier"),
    "one product too many": (
        {
            "gl.cdiv(rows, BLOCK_M))": "gl.cdiv(rows, BLOCK_M) + 1)",
            "(row < stop_row) &": "(row > -1) &",
        },
        "memory",
    ),
}


@pytest.mark.parametrize("name", SYNCHRONISATION_BUGS)
def test_synchronisation_bugs_are_caught_in_every_schedule(check_sums, mutate, name):
    replaced, kind = SYNCHRONISATION_BUGS[name]
    mutant = planted(mutate, gluon_sums, replaced)
    for seed in range(5):
        with pytest.raises(GluonFault) as caught:
            check_sums(MAIN, seed, mutant)
        assert caught.value.kind in kind


VALUE_BUGS = {
    "last product dropped": (MAIN, {"gl.cdiv(rows, BLOCK_M))": "rows // BLOCK_M)"}),
    "last row dropped": (MAIN, {"(row < stop_row)": "(row < stop_row - 1)"}),
    "rows after the chunk's strip": (
        BLOCKS["strips"],
        {"gl.minimum(strip * TILE_M, stop_row - start_row)": "stop_row - start_row"},
    ),
    "rows of the first product": (MAIN, {"[start_row + product * BLOCK_M,": "[start_row,"}),
    "first slice of the texts": (MAIN, {"[first_column, step * BLOCK_K]": "[first_column, 0]"}),
    "sums of one group": (MAIN, {"total += shared_sum.load(flat)": "pass"}),
    "what was in the accumulator is added": (
        MAIN,
        {"use_acc=step > 0": "use_acc=True", ZEROS: f"{ZEROS} + 1.0"},
    ),
    "steps not added": (MAIN, {"use_acc=step > 0": "use_acc=False"}),
    "diagonal counted": (
        BLOCKS["diagonal"],
        {"((row < first_beside) | (row >= stop_beside))": "(row >= 0)"},
    ),
    "diagonal tile's last row": (
        BLOCKS["diagonal"],
        {"gl.cdiv(stop, TILE_M) * TILE_M, first": "stop, first"},
    ),
    "natural exponent": (MAIN, {" * LOG2_E": ""}),
    "wrong strip": (BLOCKS["strips"], {"gl.cast(number, gl.int64) * columns": "0 * columns"}),
}


@pytest.mark.parametrize("name", VALUE_BUGS)
def test_wrong_sums_are_caught(check_sums, mutate, name):
    block, replaced = VALUE_BUGS[name]
    with pytest.raises(AssertionError):
        check_sums(block, 0, planted(mutate, gluon_sums, replaced))
