"""The interpreter of Gluon and its oracle catch every planted bug of the kernel."""

import pytest

from svilm_fast.kernels.infonce.fused import gluon_sums
from tests.kernels.gluon_bugs import (
    COPY_WAIT,
    FULL_WAIT,
    INTO,
    LAST_WAIT,
    WRONG,
    require_caught,
)
from tests.kernels.infonce.gluon_blocks import BLOCKS, MAIN, planted

FREE = "mbarrier.arrive(freed.index((copy - 1) % STAGES), count=1)"
LAST_FREE = "mbarrier.arrive(freed.index((product * STEPS + STEPS - 1) % STAGES), count=1)"
TURN_WAIT = "mbarrier.wait(turns.index(GROUP), (product // 2 & 1) ^ (1 - GROUP))"
TURN = "mbarrier.arrive(turns.index(1 - GROUP), count=1)"
EXPECT = "mbarrier.expect(filled.index(stage), videos.block_type.nbytes)"
TEXT_WAIT = "mbarrier.wait(text_filled.index(step), texts_phase, pred=new_texts)"
NEW_TEXTS = "            product,\n            product == GROUP,\n"
STORE = "shared_sum.store(total)"
ANNOUNCE = "mbarrier.arrive(summed, count=1)"
ZEROS = "dots = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=layout)"

# Text -> a plausible mistake instead, and what the interpreter may say about it (`gluon_bugs`).
SYNCHRONISATION_BUGS = {
    "no wait for a full stage": ({FULL_WAIT: "pass"}, "missing wait"),
    "no wait for the texts": ({TEXT_WAIT: "pass"}, "missing wait"),
    "only group 1 waits for the texts": (
        {NEW_TEXTS: NEW_TEXTS.replace("GROUP", "1")},
        "missing wait",
    ),
    "no wait for an empty stage": ({COPY_WAIT: "pass"}, "overwritten buffer or barrier"),
    "no arrival at an empty stage": ({FREE: "pass"}, "deadlock"),
    "no arrival at the last empty stage": ({LAST_FREE: "pass"}, "deadlock"),
    "wrong phase of a full stage": (
        {FULL_WAIT: FULL_WAIT[:-1] + " ^ 1)"},
        "missing wait or deadlock",
    ),
    "wrong phase of an empty stage": ({COPY_WAIT: COPY_WAIT.replace(" ^ 1", "")}, "deadlock"),
    "phase that ignores the ring": (
        {FULL_WAIT: FULL_WAIT.replace("copy // STAGES", "copy")},
        "missing wait or deadlock",
    ),
    "freed before the product is waited for": (
        {"warpgroup_mma_wait(1, deps=(dots,))": "warpgroup_mma_wait(2, deps=(dots,))"},
        "overwritten buffer",
    ),
    "last stage freed before the wait": (
        {LAST_WAIT: "", LAST_FREE: f"{LAST_FREE}\n    {LAST_WAIT}"},
        "overwritten buffer",
    ),
    "sums before the last product ends": (
        {LAST_WAIT: LAST_WAIT.replace("(0,", "(1,")},
        "pending",
    ),
    "too few bytes expected": ({EXPECT: EXPECT[:-1] + " // 2)"}, "barrier"),
    "too many bytes expected": ({EXPECT: EXPECT[:-1] + " + 16)"}, "deadlock"),
    "bytes of the texts for the videos": (
        {EXPECT: EXPECT.replace("videos", "texts")},
        "barrier",
    ),
    "copy into the next stage": (
        {INTO: INTO.replace("stage", "(stage + 1) % STAGES")},
        "missing wait",
    ),
    "texts copied for every product": (
        {"pred=product == 0": "pred=product >= 0"},
        "missing wait or deadlock",
    ),
    "texts expected and never copied": (
        {"                pred=product == 0,\n": "                pred=product < 0,\n"},
        "deadlock",
    ),
    "the turn is not passed on": ({TURN: "pass"}, "deadlock"),
    "the turn is kept": (
        {TURN: TURN.replace("1 - GROUP", "GROUP")},
        "missing wait or overwritten buffer or deadlock",
    ),
    "both groups wait for a first turn": (
        {TURN_WAIT: TURN_WAIT.replace(" ^ (1 - GROUP)", "")},
        "deadlock",
    ),
    "two arrivals expected at a stage": (
        {"init(freed.index(stage), count=1)": "init(freed.index(stage), count=2)"},
        "deadlock",
    ),
    "no wait for the other group's sums": ({"mbarrier.wait(summed, 0)": "pass"}, "missing wait"),
    "sums announced before they are stored": (
        {f"{STORE}\n        {ANNOUNCE}": f"{ANNOUNCE}\n        {STORE}"},
        "missing wait",
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
    replaced, faults = SYNCHRONISATION_BUGS[name]
    mutant = planted(mutate, gluon_sums, replaced)
    require_caught(lambda seed: check_sums(MAIN, seed, mutant), faults, seeds=5)


# Sums that two programs write.
MEMORY_BUGS = {
    "rows after the chunk's strip": {
        "gl.minimum(strip * TILE_M, stop_row - start_row)": "stop_row - start_row"
    },
    "wrong strip": {"gl.cast(number, gl.int64) * columns": "0 * columns"},
}


@pytest.mark.parametrize("name", MEMORY_BUGS)
def test_sums_of_another_program_are_caught(check_sums, mutate, name):
    mutant = mutate(gluon_sums, MEMORY_BUGS[name])
    require_caught(lambda seed: check_sums(BLOCKS["strips"], seed, mutant), "memory")


VALUE_BUGS = {
    "last product dropped": (MAIN, {"gl.cdiv(rows, BLOCK_M))": "rows // BLOCK_M)"}),
    "last row dropped": (MAIN, {"(row < stop_row)": "(row < stop_row - 1)"}),
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
}


@pytest.mark.parametrize("name", VALUE_BUGS)
def test_wrong_sums_are_caught(check_sums, mutate, name):
    block, replaced = VALUE_BUGS[name]
    mutant = planted(mutate, gluon_sums, replaced)
    require_caught(lambda seed: check_sums(block, seed, mutant), WRONG)
