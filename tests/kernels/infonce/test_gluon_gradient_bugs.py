"""The interpreter of Gluon and its oracle catch every planted bug of the gradient's kernel."""

import pytest

from svilm_fast.kernels.infonce.fused import gluon_gradient
from tests.kernels.gluon_bugs import COPY_WAIT, LAST_WAIT, WRONG, require_caught
from tests.kernels.infonce.gluon_blocks import planted
from tests.kernels.infonce.gluon_gradient_blocks import BLOCKS, MAIN, GradientBlock

TEXT_EXPECT = "mbarrier.expect(text_filled.index(step), texts.block_type.nbytes, pred=new_texts)"
EXPECT = "mbarrier.expect(filled.index(stage), videos.block_type.nbytes)"
STORE = "store_buffer.store(half)"
FENCE = "fence_async_shared()"
STORE_WAIT = "        tma.store_wait(0)\n        store_buffer"
LAST_STORE_WAIT = "    tma.store_wait(0)\n\n\n"
SECOND_BUFFER = "store_buffers.index(1)"
TEXT_PHASE = "(column_tile - first // row_products) & 1"
TEXT_WAIT = "mbarrier.wait(text_filled.index(step), texts_phase, pred=new_texts)"
NEW_TEXTS = "(product == GROUP) | (row_product < 2),"
TURN_WAIT = "mbarrier.wait(turns.index(GROUP), (product // 2 & 1) ^ (1 - GROUP))"

# Stages of the ring, text -> a plausible mistake instead, and what the interpreter may say about it
# (`gluon_bugs`).
SYNCHRONISATION_BUGS = {
    "no wait for an empty stage": (2, {COPY_WAIT: "pass"}, "overwritten buffer or barrier"),
    "wrong phase of an empty stage": (2, {COPY_WAIT: COPY_WAIT[:-4] + ")"}, "deadlock"),
    "no wait for the readers of the old texts": (
        5,
        {"if STAGES > STEPS:": "if False:"},
        "missing wait or overwritten buffer",
    ),
    "no wait for the other group's reading of the old texts": (
        8,
        {"if STAGES > 2 * STEPS:": "if False:"},
        "overwritten buffer",
    ),
    "texts freed by the last product but one": (
        5,
        {"pred=new_texts & (product > 0)": "pred=new_texts & (product > 5)"},
        "missing wait or overwritten buffer",
    ),
    "old texts waited for by the wrong stage": (
        5,
        {"read = copy + STAGES - STEPS": "read = copy + STAGES - STEPS - 1"},
        "missing wait or overwritten buffer",
    ),
    "texts copied for every product": (
        2,
        {"| ((first + product)": "| (0 * (first + product)"},
        "missing wait or deadlock",
    ),
    "texts copied once": (
        2,
        {"(product == 0) | ((first + product) % row_products == 0)": "product == 0"},
        "deadlock",
    ),
    "too few bytes of texts expected": (
        2,
        {TEXT_EXPECT: TEXT_EXPECT.replace("nbytes,", "nbytes // 2,")},
        "barrier",
    ),
    "bytes of the texts for the videos": (
        2,
        {EXPECT: EXPECT.replace("videos", "texts")},
        "barrier",
    ),
    "no fence after the plain store": (2, {FENCE: "pass"}, "missing fence"),
    "fence before the plain store": (
        2,
        {f"{STORE}\n        {FENCE}": f"{FENCE}\n        {STORE}"},
        "missing fence",
    ),
    "no wait before the buffer is reused": (
        2,
        {STORE_WAIT: "        store_buffer"},
        "overwritten buffer",
    ),
    "wait that leaves a store under way": (
        2,
        {STORE_WAIT: STORE_WAIT.replace("(0)", "(1)")},
        "overwritten buffer",
    ),
    "both groups store from one buffer": (
        2,
        {SECOND_BUFFER: SECOND_BUFFER.replace("index(1)", "index(0)")},
        "overwritten buffer",
    ),
    "ended before the last store has read": (2, {LAST_STORE_WAIT: "\n\n"}, "pending"),
    "texts of the first phase": (2, {TEXT_PHASE: "0"}, "missing wait or deadlock"),
    "phase of the texts turned": (
        2,
        {TEXT_PHASE: f"({TEXT_PHASE}) ^ 1"},
        "missing wait or deadlock",
    ),
    "texts waited for once": (2, {NEW_TEXTS: "product == GROUP,"}, "missing wait"),
    "no wait for the texts": (2, {TEXT_WAIT: "pass"}, "missing wait"),
    "gradient before the last product ends": (
        2,
        {LAST_WAIT: LAST_WAIT.replace("(0,", "(1,")},
        "pending",
    ),
    "no wait for the turn": (
        2,
        {TURN_WAIT: "pass"},
        "missing wait or overwritten buffer or deadlock or no fault",
    ),
}


@pytest.mark.parametrize("name", SYNCHRONISATION_BUGS)
def test_synchronisation_bugs_are_caught_in_every_schedule(check_gradient, mutate, name):
    stages, replaced, faults = SYNCHRONISATION_BUGS[name]
    mutant = planted(mutate, gluon_gradient, replaced)
    require_caught(lambda seed: check_gradient(MAIN, seed, mutant, stages), faults, seeds=4)


LOST, UPSTREAM = BLOCKS["lost rows"], BLOCKS["lost rows, upstream given"]
SOME_PAIRS = BLOCKS["pairs of some lines"]
VALUE_BUGS = {
    "scale of float16 lost on the main path": (MAIN, {"(row_factor * lift)": "(row_factor)"}),
    "scale of float16 lost on the exact path": (UPSTREAM, {"gradient = lift * gradient": "pass"}),
    "lines exchanged": (
        MAIN,
        {
            "factors + first_line + row_in": "factors + column_line + row_in",
            "factors + column_line + column_in": "factors + first_line + column_in",
        },
    ),
    "flags of the columns ignored": (
        BLOCKS["lost columns"],
        {"gl.load(sound + column_line // LINES + block)": "1"},
    ),
    "flags of the first block of rows only": (
        GradientBlock(200, 32, lost=(2,)),
        {"gl.static_range(1, BLOCK_M // LINES)": "gl.static_range(1, 2)"},
    ),
    "flags of the first rows": (LOST, {"sound + first_line // LINES": "sound + 0"}),
    "always the main path": (LOST, {"if is_sound != 0:": "if True:"}),
    "always the exact path": (MAIN, {"if is_sound != 0:": "if False:"}),
    "no sum, and a gradient": (
        BLOCKS["lost rows"],
        {'gl.where(log == float("-inf"), float("inf"), log)': "log"},
    ),
    "a pair for every line": (SOME_PAIRS, {"(partner >= 0)": "(line >= 0)"}),
    "shift of the columns' pairs": (SOME_PAIRS, {"column, -offset,": "column, offset,"}),
    "upstream of the columns lost": (UPSTREAM, {" * column_upstream[None, :]": ""}),
    "offset of the exponent": (MAIN, {"-slope + OFFSET": "-slope"}),
    "natural exponent": (MAIN, {" * LOG2_E": ""}),
    "last product dropped": (
        MAIN,
        {"// gl.num_programs(0) - first": "// gl.num_programs(0) - first - gl.program_id(0)"},
    ),
    "rows of the whole matrix stored": (
        BLOCKS["second chunk, in a larger buffer"],
        {"out, [row_product * BLOCK_M,": "out, [first_row + row_product * BLOCK_M,"},
    ),
    "rows of the first chunk": (
        BLOCKS["second chunk, in a larger buffer"],
        {"row_start = first_row +": "row_start = 0 * first_row +"},
    ),
    "groups store each other's rows": (
        MAIN,
        {"out, [row_product * BLOCK_M,": "out, [(row_product ^ 1) * BLOCK_M,"},
    ),
    "columns of the next tile": (
        MAIN,
        {"[column_tile * BLOCK_N, step": "[(column_tile + 1) * BLOCK_N, step"},
    ),
}


@pytest.mark.parametrize("name", VALUE_BUGS)
def test_wrong_gradients_are_caught(check_gradient, mutate, name):
    block, replaced = VALUE_BUGS[name]
    mutant = mutate(gluon_gradient, replaced)
    require_caught(lambda seed: check_gradient(block, seed, mutant), WRONG)
