"""The interpreter of Gluon and its oracle catch every planted bug of the kernel."""

import pytest

from svilm_fast.kernels.grounding.fused import gluon_gradient, gluon_tiles
from tests.kernels.gluon_bugs import (
    COPY_WAIT,
    FULL_WAIT,
    INTO,
    LAST_WAIT,
    WRONG,
    require_caught,
)
from tests.kernels.grounding.gluon_blocks import BLOCKS, LOSS, MAIN

FREE = "mbarrier.arrive(freed.index((copy - 1) % STAGES), count=1)"
LAST_FREE = "mbarrier.arrive(freed.index((number * STEPS + STEPS - 1) % STAGES), count=1)"
TURN_WAIT = "mbarrier.wait(turns.index(GROUP), (number & 1) ^ (1 - GROUP))"
TURN = "mbarrier.arrive(turns.index(1 - GROUP), count=1)"
EXPECT = "mbarrier.expect(filled.index(stage), groups.block_type.nbytes)"
NOUN_WAIT = "mbarrier.wait(nouns_filled.index(step), 0, pred=number == 0)"
STORE_WAIT = "            tma.store_wait(0)\n            result.store"
STORE = "result.store(gl.cast(values, gradient.dtype))"
FENCE = "fence_async_shared()\n            tma"
END = "    if WRITE:\n        tma.store_wait(0)\n"

# Text -> a plausible mistake instead, and what the interpreter may say about it (`gluon_bugs`).
SYNCHRONISATION_BUGS = {
    "no wait for a full stage": ({FULL_WAIT: "pass"}, "missing wait"),
    "no wait for the nouns": ({NOUN_WAIT: "pass"}, "missing wait"),
    "only group 1 waits for the nouns": (
        {NOUN_WAIT: NOUN_WAIT.replace("number == 0", "number + 1 == GROUP")},
        "missing wait",
    ),
    "no wait for an empty stage": ({COPY_WAIT: "pass"}, "overwritten buffer or barrier"),
    "no arrival at an empty stage": ({FREE: "pass"}, "deadlock"),
    "no arrival at the last empty stage": ({LAST_FREE: "pass"}, "deadlock"),
    "one group frees a stage for both": (
        {"init(freed.index(stage), count=2)": "init(freed.index(stage), count=1)"},
        "missing wait or overwritten buffer or deadlock",
    ),
    "three arrivals expected at a stage": (
        {"init(freed.index(stage), count=2)": "init(freed.index(stage), count=3)"},
        "deadlock",
    ),
    "wrong phase of a full stage": (
        {FULL_WAIT: FULL_WAIT[:-1] + " ^ 1)"},
        "missing wait or deadlock",
    ),
    "wrong phase of an empty stage": ({COPY_WAIT: COPY_WAIT.replace(" ^ 1", "")}, "deadlock"),
    "phase that ignores the ring": (
        {FULL_WAIT: FULL_WAIT.replace("copy // STAGES", "copy")},
        "missing wait or deadlock",
    ),
    "stages counted from the first video": (
        {"copy = (tile - first) * STEPS + step": "copy = (tile + 1) * STEPS + step"},
        "deadlock",
    ),
    "freed before the product is waited for": (
        {"warpgroup_mma_wait(1, deps=(dots,))": "warpgroup_mma_wait(2, deps=(dots,))"},
        "overwritten buffer",
    ),
    "last stage freed before the wait": (
        {LAST_WAIT: "", LAST_FREE: f"{LAST_FREE}\n        {LAST_WAIT}"},
        "overwritten buffer",
    ),
    "gradient before the last product ends": (
        {LAST_WAIT: LAST_WAIT.replace("(0,", "(1,")},
        "pending",
    ),
    "too few bytes expected": ({EXPECT: EXPECT[:-1] + " // 2)"}, "barrier"),
    "too many bytes expected": ({EXPECT: EXPECT[:-1] + " + 16)"}, "deadlock"),
    "bytes of one half of the nouns": (
        {"2 * nouns.block_type.nbytes": "nouns.block_type.nbytes"},
        "missing wait or barrier",
    ),
    "copy into the next stage": (
        {INTO: INTO.replace("stage", "(stage + 1) % STAGES")},
        "missing wait",
    ),
    "nouns copied for every tile": (
        {"pred=tile == first": "pred=tile >= first"},
        "overwritten buffer or barrier",
    ),
    "the turn is not passed on": ({TURN: "pass"}, "deadlock"),
    "the turn is kept": ({TURN: TURN.replace("1 - GROUP", "GROUP")}, "deadlock"),
    "both groups wait for a first turn": (
        {TURN_WAIT: TURN_WAIT.replace(" ^ (1 - GROUP)", "")},
        "deadlock",
    ),
    "result overwritten during its store": (
        {STORE_WAIT: STORE_WAIT.replace("tma.store_wait(0)", "pass")},
        "overwritten buffer",
    ),
    "wait for the store before the last": (
        {STORE_WAIT: STORE_WAIT.replace("tma.store_wait(0)", "tma.store_wait(1)")},
        "overwritten buffer",
    ),
    "one result buffer for both groups": (
        {"results.index(GROUP)": "results.index(0)"},
        "overwritten buffer",
    ),
    "no fence before the store": ({FENCE: "tma"}, "missing fence"),
    "fence before the result is there": (
        {STORE: f"fence_async_shared()\n            {STORE}", FENCE: "tma"},
        "missing fence",
    ),
    "ends during a store": ({END: ""}, "pending"),
    "store before the result is there": (
        {f"            {STORE}\n": "", "[row_start + GROUP * ROWS, tile * BLOCK_N], result\n"
         "            )": f"[row_start + GROUP * ROWS, tile * BLOCK_N], result\n            )\n"
         f"            {STORE}"},
        "missing wait",
    ),
    "a barrier without a count": (
        {"mbarrier.init(turns.index(group), count=1)": "pass"},
        "barrier",
    ),
    "groups exchanged at the store": (
        {"gradient, [row_start + GROUP * ROWS": "gradient, [row_start + (1 - GROUP * 0) * ROWS"},
        "memory",
    ),
    "beta's sum of one group": (
        {"partial_beta + GROUP, total": "partial_beta, total"},
        "memory",
    ),
    "the same strip for every program": (
        {"first = pid % strips * strip": "first = pid % 1 * strip"},
        "memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SYNCHRONISATION_BUGS)
def test_synchronisation_bugs_are_caught_in_every_schedule(check_gradient, mutate, name):
    replaced, faults = SYNCHRONISATION_BUGS[name]
    mutant = mutate(gluon_gradient, replaced)
    block = BLOCKS["strips"] if "strip" in name else MAIN
    require_caught(lambda seed: check_gradient(block, seed, mutant), faults, seeds=5)


def test_fewer_stages_than_steps_are_refused(check_gradient, mutate):
    """A group would wait for a stage that the other frees only after its turn."""
    with pytest.raises(AssertionError, match="a group needs all steps of a tile"):
        check_gradient(MAIN, stages=2)
    mutant = mutate(gluon_gradient, {"STAGES >= STEPS": "STAGES > 0"})
    require_caught(lambda seed: check_gradient(MAIN, seed, mutant, stages=2), "deadlock", seeds=5)


COUNTED = "counted = counted & (total > 0.0)"
VALUE_BUGS = {
    "groups exchanged": (MAIN, {"noun_tile.index(2 * step + GROUP)": "noun_tile.index(2 * step)"}),
    "rows of the other group": (
        MAIN,
        {"row = row_start + GROUP * ROWS": "row = row_start + (1 - GROUP) * ROWS"},
    ),
    "first slice of the nouns": (
        MAIN,
        {"[row_start + group * ROWS, step * BLOCK_K]": "[row_start + group * ROWS, 0]"},
    ),
    "steps not added": (MAIN, {"use_acc=step > 0": "use_acc=False"}),
    "first tile again": (MAIN, {"[first_column + tile * COLUMNS,": "[first_column,"}),
    "columns of the first chunk": (BLOCKS["second chunk"], {"[first_column + tile": "[tile"}),
    "last tile dropped": (MAIN, {"strip, column_tiles)": "strip, column_tiles - 1)"}),
    "beta's sum of the last tile only": (MAIN, {"beta_terms += sum": "beta_terms = sum"}),
    "beta's sum lost": (MAIN, {"beta_terms += sum_in_threads(moments)": "pass"}),
    "beta's sum at another program": (
        BLOCKS["strips"],
        {"partial_beta + 2 * (first_partial + pid)": "partial_beta + first_partial + 2 * pid"},
    ),
    "beta's factor left in": (MAIN, {"total_beta / multiplier": "total_beta"}),
    "slope once": (MAIN, {" / slope / slope": " / slope"}),
    "scale's sum of every noun": (LOSS, {"gl.where(row % PADDED_K == 0,": "gl.where(row > -1,"}),
    "scale's sum of the last tile only": (LOSS, {"scale_terms += ": "scale_terms = "}),
    "videos after the chunk": (
        BLOCKS["second chunk"],
        {"first_video + chunk_videos),": "first_video + chunk_videos + 1),"},
    ),
    "captions without a noun counted": (LOSS, {COUNTED: "pass"}),
    "first noun only": (LOSS, {"for noun in range(PADDED_K)": "for noun in range(0)"}),
    "log sums of the first videos": (
        BLOCKS["second chunk"],
        {"lse + video, mask=": "lse + video - first_video, mask="},
    ),
    "log sums of the videos for the captions": (
        LOSS,
        {"lse + captions + caption": "lse + caption"},
    ),
    "diagonal of the first chunk": (
        BLOCKS["second chunk"],
        {" video,\n            stop_video": " video - first_video,\n            stop_video"},
    ),
    "weights left out": (MAIN, {"upstream * weight[:, None], G": "upstream * multiplier, G"}),
    "without the common factor": (MAIN, {"other=0.0) * multiplier": "other=0.0)"}),
}


@pytest.mark.parametrize("name", VALUE_BUGS)
def test_wrong_gradients_are_caught(check_gradient, mutate, name):
    block, replaced = VALUE_BUGS[name]
    mutant = mutate(gluon_gradient, replaced)
    require_caught(lambda seed: check_gradient(block, seed, mutant), WRONG)


TILE_BUGS = {
    "padded groups counted": (BLOCKS["padded groups"], {"(group < G)": "(group < PADDED_G)"}),
    "padded groups infinite": (BLOCKS["padded groups"], {"-1e30": 'float("-inf")'}),
    "not centred": (MAIN, {"exponent - mean[:, :, None]": "exponent"}),
    "natural exponents": (MAIN, {"LN_2 * moment": "moment"}),
    "without the softmax's sum": (MAIN, {"(upstream * share)[:": "upstream[:"}),
    "slope left out": (MAIN, {"gl.fma(products, slope, shift": "gl.fma(products, 1.0, shift"}),
    "beta's terms centred once": (MAIN, {"moment * centred\n": "moment\n"}),
    "every second row of beta's terms": (
        MAIN,
        {"gl.sum(gl.sum(parts, 3), 1)": "gl.max(gl.sum(parts, 3), 1)"},
    ),
}


@pytest.mark.parametrize("name", TILE_BUGS)
def test_wrong_tiles_are_caught(check_gradient, mutate, name):
    block, replaced = TILE_BUGS[name]
    mutate(gluon_tiles, replaced)
    require_caught(lambda seed: check_gradient(block, seed), WRONG)
