"""The interpreter of Gluon and the oracle catch every planted bug of the kernel."""

import pytest
import torch

from svilm_fast.kernels.grouping.fused import gluon_forward, gluon_tiles
from tests.kernels.gluon_bugs import (
    COPY_WAIT,
    FULL_WAIT,
    INTO,
    LAST_WAIT,
    WRONG,
    require_caught,
)
from tests.kernels.grouping.gluon_calls import CALLS, MAIN, WHOLE, run_kernel

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets on the CPU")

EXPECT = "mbarrier.expect(filled.index(stage), tokens.block_type.nbytes)"
TAKEN_WAIT = "mbarrier.wait(taken, (tile & 1) ^ 1)"
STORE = "share.store(gl.cast(assignment, share.dtype))"
FENCE = "fence_async_shared()\n"
ASSIGNED = "mbarrier.arrive(assigned, count=1)"
ASSIGNED_WAIT = "mbarrier.wait(assigned, tile & 1)"
POOL_STAGE = "stage = (tile * SLICES + part) % STAGES"
ADDED = "sums[part],\n                is_async=True"
POOL_WAIT = "warpgroup_mma_wait(1, deps=(before,))"
FREE = "mbarrier.arrive(freed.index((tile * SLICES + part - 1) % STAGES), count=1)"
POOLED_WAIT = "sums = updated + (warpgroup_mma_wait(0, deps=(running,)),)"
LAST_FREE = "mbarrier.arrive(freed.index((tile * SLICES + SLICES - 1) % STAGES), count=1)"
TAKEN = "mbarrier.arrive(taken, count=1)"
COUNTS = "shared_count.store(total)"
COUNTED = "mbarrier.arrive(counted, count=1)"

# Text -> a plausible mistake instead, and what the interpreter may say about it (`gluon_bugs`).
SYNCHRONISATION_BUGS = {
    "no wait for a full stage": ({FULL_WAIT: "pass"}, "missing wait"),
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
    "phase of the tile": (
        {FULL_WAIT: FULL_WAIT.replace("copy // STAGES", "tile")},
        "missing wait or deadlock",
    ),
    "freed before the product is waited for": (
        {POOL_WAIT: POOL_WAIT.replace("(1,", "(2,")},
        "overwritten buffer",
    ),
    "freed after the logits": (
        {
            "filled, _, assigned": "filled, freed, assigned",
            LAST_WAIT: f"{LAST_WAIT}\n        mbarrier.arrive(freed.index(stage), count=1)",
        },
        "overwritten buffer or deadlock",
    ),
    "the slice under way is freed": ({FREE: FREE.replace("part - 1", "part")}, "deadlock"),
    "last stage freed before the wait": (
        {POOLED_WAIT: "", LAST_FREE: f"{LAST_FREE}\n        {POOLED_WAIT}"},
        "overwritten buffer",
    ),
    "assignment given back before the wait": (
        {POOLED_WAIT: f"{TAKEN}\n        {POOLED_WAIT}", f"        {TAKEN}\n\n": "\n"},
        "overwritten buffer",
    ),
    "logits before the last product ends": (
        {LAST_WAIT: LAST_WAIT.replace("(0,", "(1,")},
        "pending",
    ),
    "too few bytes expected": ({EXPECT: EXPECT[:-1] + " // 2)"}, "barrier"),
    "too many bytes expected": ({EXPECT: EXPECT[:-1] + " + 16)"}, "deadlock"),
    "copy into the next stage": (
        {INTO: INTO.replace("stage", "(stage + 1) % STAGES")},
        "missing wait",
    ),
    "pooling is a slice ahead": (
        {POOL_STAGE: POOL_STAGE.replace("part)", "part + 1)")},
        "missing wait",
    ),
    "no wait for the assignment": ({ASSIGNED_WAIT: "pass"}, "missing wait"),
    "wrong phase of the assignment": (
        {ASSIGNED_WAIT: ASSIGNED_WAIT.replace("tile & 1", "(tile & 1) ^ 1")},
        "missing wait or deadlock",
    ),
    "the assignment of any even tile": (
        {ASSIGNED_WAIT: ASSIGNED_WAIT.replace("tile & 1", "0")},
        "missing wait or deadlock",
    ),
    "assignment not announced": ({ASSIGNED: "pass"}, "deadlock"),
    "assignment announced before it is stored": (
        {f"{STORE}\n        {FENCE}        {ASSIGNED}": f"{ASSIGNED}\n        {STORE}"},
        "missing wait",
    ),
    "no wait until the assignment is taken": ({TAKEN_WAIT: "pass"}, "overwritten buffer"),
    "wrong phase of what was taken": ({TAKEN_WAIT: TAKEN_WAIT.replace(" ^ 1", "")}, "deadlock"),
    "assignment not given back": ({f"        {TAKEN}\n": ""}, "deadlock"),
    "no fence after the assignment": ({f"{STORE}\n        {FENCE}": f"{STORE}\n"}, "missing fence"),
    "fence before the assignment": (
        {f"{STORE}\n        {FENCE}": f"{FENCE}        {STORE}\n"},
        "missing fence",
    ),
    "no fence after the queries": ({f"    {FENCE}    group": "    group"}, "missing fence"),
    "two arrivals expected at a stage": (
        {"init(freed.index(stage), count=1)": "init(freed.index(stage), count=2)"},
        "deadlock",
    ),
    "no wait for the counts": ({"mbarrier.wait(counted, 0)": "pass"}, "missing wait"),
    "counts announced before they are stored": (
        {f"{COUNTS}\n    {COUNTED}": f"{COUNTED}\n    {COUNTS}"},
        "missing wait",
    ),
    "a barrier without a count": ({"    mbarrier.init(taken, count=1)\n": ""}, "barrier"),
}


@pytest.mark.parametrize("name", SYNCHRONISATION_BUGS)
def test_synchronisation_bugs_are_caught_in_every_schedule(check_gluon, mutate, name):
    replaced, faults = SYNCHRONISATION_BUGS[name]
    mutant = mutate(gluon_forward, replaced)
    require_caught(lambda seed: check_gluon(MAIN, seed, mutant), faults, seeds=3)


def test_a_ring_that_does_not_hold_a_tile_is_a_deadlock(check_gluon):
    require_caught(lambda seed: check_gluon(MAIN, seed, stages=2), "deadlock")


TWO_SAMPLES = MAIN | {"batch": 2, "length": 70}
SPLIT = {"dtype": torch.float16} | CALLS["splits"]
DROPPED = {"dtype": torch.float16, "plan": WHOLE} | CALLS["dropped tokens"]
VALUE_BUGS = {
    "one-hot of the tile before": (
        MAIN,
        {
            STORE: "given, late = (assignment if tile == 0 else late), assignment\n"
            "        share.store(gl.cast(given, share.dtype))"
        },
    ),
    "last tile dropped": (MAIN, {"gl.cdiv(last - first, BLOCK_L)": "(last - first) // BLOCK_L"}),
    "tokens past the end take part": (MAIN, {"label = gl.where(token < last, label, -1)": ""}),
    "counts of the last tile only": (
        MAIN,
        {"count += sum_in_threads(assignment": "count = sum_in_threads(assignment"},
    ),
    "sums of the last tile only": (
        MAIN,
        {ADDED: ADDED.replace("is_async", "use_acc=False, is_async")},
    ),
    "sums of the first slice": (MAIN, {"value = sums[part]": "value = sums[0]"}),
    "columns of the first slice": (MAIN, {"part * BLOCK_C],": "0],"}),
    "tokens of the first tile": (MAIN, {"[sample, first + tile * BLOCK_L,": "[sample, first,"}),
    "tokens of sample 0": (TWO_SAMPLES, {"[sample, first": "[0, first"}),
    "queries of sample 0": (TWO_SAMPLES, {"queries + wide_sample * GROUPS * WIDTH": "queries"}),
    "seed of sample 0": (TWO_SAMPLES, {"gl.load(seeds + sample)": "gl.load(seeds)"}),
    "bias forgotten": (MAIN, {"logits += bias[None, :]": "pass"}),
    "noise forgotten": (MAIN, {"logits += noise": "pass"}),
    "noise of the first tile": (MAIN, {"sample_start, start, last": "sample_start, first, last"}),
    "order of the product's columns": (MAIN, {"(0, 2, 1, 3)": "(0, 1, 2, 3)"}),
    "eps forgotten": (MAIN, {"(count + eps)": "(count + 1e-6)"}),
    "every split divides": (SPLIT, {"if SPLITS == 1:": "if True:"}),
}  # fmt: skip
TILE_BUGS = {
    "queries in the order of groups": (MAIN, {"group = quad_order(row, BLOCK_G)": "group = row"}),
    "bias of sample 0": (TWO_SAMPLES, {"group_bias + sample * GROUPS": "group_bias"}),
    "quads of the padded groups": (MAIN, {"(GROUPS + 3) // 4": "BLOCK_G // 4"}),
    "noise by position": (DROPPED, {"if token_ids is not None:": "if False:"}),
    "rows counted twice": (MAIN, {"gl.sum(gl.reshape(values,": "2 * gl.sum(gl.reshape(values,"}),
}  # fmt: skip


def test_a_split_that_takes_the_tokens_of_another_is_caught(check_gluon, mutate):
    mutant = mutate(gluon_forward, {"gl.program_id(0) % SPLITS * chunk": "0 * chunk"})
    require_caught(lambda seed: check_gluon(SPLIT, seed, mutant), "memory")


@pytest.mark.parametrize("name", VALUE_BUGS)
def test_wrong_results_are_caught(check_gluon, mutate, name):
    call, replaced = VALUE_BUGS[name]
    mutant = mutate(gluon_forward, replaced)
    require_caught(lambda seed: check_gluon(call, seed, mutant), WRONG)


@pytest.mark.parametrize("name", TILE_BUGS)
def test_wrong_device_functions_are_caught(check_gluon, mutate, name):
    call, replaced = TILE_BUGS[name]
    mutate(gluon_tiles, replaced)
    require_caught(lambda seed: check_gluon(call, seed), WRONG)


def test_the_first_of_equal_groups_wins(check_grouping, mutate, monkeypatch):
    regime = check_grouping.Regime(mode="hard", dtype=torch.float16, bias=None, length=70)
    arguments, _, _ = check_grouping.make(regime)
    arguments["queries"].zero_()
    last = "gl.max(gl.where(logits == best[:, None], group[None, :], 0), 1)"
    bug = {"gl.min(gl.where(logits == best[:, None], group[None, :], GROUPS - 1), 1)": last}
    for plant, expected in ((lambda module, _: module, 0), (mutate, 5)):
        module = plant(gluon_forward, bug)
        monkeypatch.setattr(module, "SLICE", 16)
        _, counts, index, _ = run_kernel(module, arguments, WHOLE, 0)
        assert (index == expected).all()
        assert (counts[:, expected] == 70).all()
