"""The interpreter of Gluon and the oracle catch every planted bug of the backward kernel."""

import inspect

import pytest
import torch

from svilm_fast.kernels.grouping.fused import (
    gluon_backward,
    gluon_forward,
    gluon_gradients,
    gluon_tiles,
)
from tests.kernels.gluon_bugs import COPY_WAIT, WRONG, require_caught
from tests.kernels.grouping.gluon_calls import CALLS, MAIN, WHOLE

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets on the CPU")

# A temperature whose power of two is another number.
COLD = MAIN | {"temperature": 0.3}

FACTORS = "\n            dots = warpgroup_mma("
SUMS = "\n            before = running"
FULL_WAIT = "mbarrier.wait(filled.index(stage), copy // STAGES & 1)"
FREED_BEFORE = "mbarrier.arrive(before, count=1, pred=part > 0)"
DOTS_WAIT = "dots = warpgroup_mma_wait(1, deps=(dots,))"
LAST_DOTS_WAIT = "dots = warpgroup_mma_wait(0, deps=(dots,))"
LAST_FREED = "mbarrier.arrive(freed.index((tile * SLICES + SLICES - 1) % STAGES), count=1)"
LOGITS = "\n        logits, d_assignment"
USED_WAIT = "mbarrier.wait(used, (tile & 1) ^ 1)"
STORES = (
    "d_logits.store(gl.cast(d_logit, d_logits.dtype))\n"
    "        shares.store(gl.cast(assignment, shares.dtype))\n"
)
FENCE = "        fence_async_shared()\n"
COMPUTED = "        mbarrier.arrive(computed, count=1)\n"
COMPUTED_WAIT = "mbarrier.wait(computed, tile & 1)"
FOR_TOKENS = "\n        for part in range(SLICES):\n            # Whoever"
FOR_QUERIES = "\n        updated = ()"
WRITTEN = "mbarrier.arrive(used, count=1, pred=part == SLICES - 1)"
D_X_WAIT = "d_x = warpgroup_mma_wait(0, deps=(d_x,))"
RESULT = "results.index((tile * SLICES + part) % 2)"
RESULT_FENCE = "            fence_async_shared()\n            tma.async_copy_shared"
STORE_WAIT = "tma.store_wait(1)"
POOL_WAIT = "warpgroup_mma_wait(1, deps=(before,))"
FREED_SUM = "mbarrier.arrive(freed.index((copy - 1) % STAGES), count=1)"
LAST_SUM = "sums = updated + (warpgroup_mma_wait(0, deps=(running,)),)"
ADDED = "mbarrier.arrive(used, count=1)\n\n"
AGAIN = "(again, d_logits), (filled_again, freed_again, computed, used)"

# Text -> a plausible mistake instead, and what the interpreter may say about it (`gluon_bugs`).
SYNCHRONISATION_BUGS = {
    "no wait for queries and h": ({"    mbarrier.wait(given, 0)\n": ""}, "missing wait"),
    "too few bytes of queries and h": (
        {"expect(given, SLICES * ": "expect(given, "},
        "barrier or missing wait",
    ),
    "queries and h in one slice": (
        {"given, held.index(part)": "given, held.index(0)"},
        "overwritten buffer",
    ),
    "factors: no wait for a full stage": ({FULL_WAIT + FACTORS: FACTORS.strip()}, "missing wait"),
    "factors: wrong phase of a full stage": (
        {FULL_WAIT + FACTORS: FULL_WAIT[:-1] + " ^ 1)" + FACTORS},
        "deadlock or missing wait",
    ),
    "factors: phase that ignores the ring": (
        {FULL_WAIT + FACTORS: FULL_WAIT.replace("copy // STAGES", "copy") + FACTORS},
        "deadlock or missing wait",
    ),
    "factors: no arrival at an empty stage": ({FREED_BEFORE: "pass"}, "deadlock"),
    "factors: arrival for a slice before the first": (
        {FREED_BEFORE: FREED_BEFORE.replace(", pred=part > 0", "")},
        "deadlock or overwritten buffer",
    ),
    "factors: the slice under way is freed": (
        {"(copy + STAGES - 1) % STAGES": "copy % STAGES"},
        "deadlock",
    ),
    "factors: freed before the product is waited for": (
        {DOTS_WAIT: DOTS_WAIT.replace("(1,", "(2,")},
        "overwritten buffer",
    ),
    "factors: no arrival at the last empty stage": (
        {LAST_FREED + LOGITS: LOGITS.strip()},
        "deadlock",
    ),
    "factors: last stage freed before the wait": (
        {f"{LAST_DOTS_WAIT}\n        {LAST_FREED}": f"{LAST_FREED}\n        {LAST_DOTS_WAIT}"},
        "overwritten buffer",
    ),
    "factors: used before the last product ends": (
        {LAST_DOTS_WAIT: LAST_DOTS_WAIT.replace("(0,", "(1,")},
        "pending",
    ),
    "factors: no wait until they are used": ({USED_WAIT: "pass"}, "overwritten buffer"),
    "factors: wrong phase of their use": ({USED_WAIT: USED_WAIT.replace(" ^ 1", "")}, "deadlock"),
    "factors: one use is enough": (
        {"init(used, count=2)": "init(used, count=1)"},
        "deadlock or overwritten buffer",
    ),
    "factors: a third use is expected": (
        {"init(used, count=2)": "init(used, count=3)"},
        "deadlock",
    ),
    "factors: no fence": ({STORES + FENCE: STORES}, "missing fence"),
    "factors: fence before the stores": (
        {STORES + FENCE: f"{FENCE[8:]}        {STORES}"},
        "missing fence",
    ),
    "factors: fence between the stores": (
        {STORES + FENCE: STORES.replace("\n", f"\n{FENCE}", 1)},
        "missing fence",
    ),
    "factors: announced before they are stored": (
        {STORES + FENCE + COMPUTED: f"{COMPUTED[8:]}        {STORES}{FENCE}"},
        "missing wait",
    ),
    "factors: not announced": ({COMPUTED: ""}, "deadlock"),
    "tokens: no wait for the factors": (
        {COMPUTED_WAIT + FOR_TOKENS: FOR_TOKENS.strip()},
        "missing wait",
    ),
    "tokens: wrong phase of the factors": (
        {COMPUTED_WAIT + FOR_TOKENS: "mbarrier.wait(computed, (tile & 1) ^ 1)" + FOR_TOKENS},
        "deadlock or missing wait",
    ),
    "tokens: the factors of any even tile": (
        {COMPUTED_WAIT + FOR_TOKENS: "mbarrier.wait(computed, 0)" + FOR_TOKENS},
        "deadlock or overwritten buffer",
    ),
    "tokens: gradient before its product ends": (
        {D_X_WAIT: D_X_WAIT.replace("(0,", "(1,")},
        "pending",
    ),
    "tokens: factors not given back": ({WRITTEN: "pass"}, "deadlock"),
    "tokens: factors given back a slice early": (
        {WRITTEN: WRITTEN.replace("- 1", "- 2")},
        "missing wait or overwritten buffer",
    ),
    "tokens: factors given back by every slice": (
        {WRITTEN: WRITTEN.replace(", pred=part == SLICES - 1", "")},
        "deadlock or missing wait or overwritten buffer",
    ),
    "tokens: factors given back before the wait": (
        {f"{D_X_WAIT}\n            {WRITTEN}": f"{WRITTEN}\n            {D_X_WAIT}"},
        "overwritten buffer",
    ),
    "tokens: no wait for a store": ({STORE_WAIT: "pass"}, "overwritten buffer"),
    "tokens: two stores under way": ({STORE_WAIT: "tma.store_wait(2)"}, "overwritten buffer"),
    "tokens: one buffer of results": ({RESULT: "results.index(0)"}, "overwritten buffer"),
    "tokens: no fence after the result": (
        {RESULT_FENCE: "            tma.async_copy_shared"},
        "missing fence",
    ),
    "tokens: ends before its stores": ({"    tma.store_wait(0)\n": ""}, "pending"),
    "queries: no wait for the factors": (
        {COMPUTED_WAIT + FOR_QUERIES: FOR_QUERIES.strip()},
        "missing wait",
    ),
    "queries: wrong phase of the factors": (
        {COMPUTED_WAIT + FOR_QUERIES: "mbarrier.wait(computed, (tile & 1) ^ 1)" + FOR_QUERIES},
        "missing wait",
    ),
    "queries: no wait for a full stage": ({FULL_WAIT + SUMS: SUMS.strip()}, "missing wait"),
    "queries: wrong phase of a full stage": (
        {FULL_WAIT + SUMS: FULL_WAIT[:-1] + " ^ 1)" + SUMS},
        "deadlock or missing wait",
    ),
    "queries: no arrival at an empty stage": ({FREED_SUM: "pass"}, "deadlock"),
    "queries: the slice under way is freed": (
        {FREED_SUM: FREED_SUM.replace("copy - 1", "copy")},
        "deadlock",
    ),
    "queries: freed before the product is waited for": (
        {POOL_WAIT: POOL_WAIT.replace("(1,", "(2,")},
        "overwritten buffer",
    ),
    "queries: last stage freed before the wait": (
        {f"{LAST_SUM}\n        {LAST_FREED}": f"{LAST_FREED}\n        {LAST_SUM}"},
        "overwritten buffer",
    ),
    "queries: factors given back before the wait": (
        {LAST_SUM: f"mbarrier.arrive(used, count=1)\n        {LAST_SUM}", f"        {ADDED}": "\n"},
        "overwritten buffer",
    ),
    "queries: factors not given back": ({f"        {ADDED}": "\n"}, "deadlock"),
    "queries: ring of the factors": (
        {AGAIN: "(ring, d_logits), (filled, freed, computed, used)"},
        "deadlock or missing wait or overwritten buffer",
    ),
    "a barrier without a count": ({"    mbarrier.init(given, count=1)\n": ""}, "barrier"),
    "a ring without a count": (
        {"    mbarrier.init(filled_again.index(stage), count=1)\n    ": ""},
        "barrier",
    ),
}


@pytest.fixture
def plant(mutate):
    """`plant(replaced)`: the kernel's module with a bug in itself or in the roles that multiply."""

    def planted(replaced):
        if all(old in inspect.getsource(gluon_backward) for old in replaced):
            return mutate(gluon_backward, replaced)
        mutate(gluon_gradients, replaced)
        return gluon_backward

    return planted


@pytest.mark.parametrize("name", SYNCHRONISATION_BUGS)
def test_synchronisation_bugs_are_caught_in_every_schedule(check_gluon_backward, plant, name):
    replaced, outcomes = SYNCHRONISATION_BUGS[name]
    mutant = plant(replaced)
    require_caught(lambda seed: check_gluon_backward(MAIN, seed, mutant), outcomes, 3)


COPY_BUGS = {
    "no wait for an empty stage": ({COPY_WAIT: "pass"}, "barrier or overwritten buffer"),
    "wrong phase of an empty stage": ({COPY_WAIT: COPY_WAIT.replace(" ^ 1", "")}, "deadlock"),
    "too many bytes expected": ({"type.nbytes)": "type.nbytes + 16)"}, "deadlock"),
}


@pytest.mark.parametrize("name", COPY_BUGS)
def test_bugs_of_the_shared_copies_are_caught(check_gluon_backward, mutate, name):
    replaced, outcomes = COPY_BUGS[name]
    mutate(gluon_forward, replaced)
    require_caught(lambda seed: check_gluon_backward(MAIN, seed), outcomes, 3)


def test_a_buffer_for_stores_is_enough_where_every_store_is_waited_for(check_gluon_backward, plant):
    """So the bug of one buffer is the wait for the store before the last one."""
    mutant = plant({RESULT: "results.index(0)", STORE_WAIT: "tma.store_wait(0)"})
    for seed in range(2):
        check_gluon_backward(MAIN, seed, mutant)


SCALE = "scale = back / lift"
CHANGE = "soft * (d_assignment - mean[:, None])"
H_PRODUCT = "shares, rows.slice(BLOCK_G, BLOCK_G), d_x, "
ORDER = "quad_order(gl.arange(0, BLOCK_G, layout=gl.SliceLayout(0, layout)), BLOCK_G)"
WRITTEN_AT = "BLOCK_L, part * BLOCK_C], result"
SUM = "sums[part],\n                is_async"
VALUE_BUGS = {
    "dlogit without its power of two": {"(lift * inverse_temperature)": "inverse_temperature"},
    "dlogit not divided by the temperature": {"(lift * inverse_temperature)": "lift"},
    "A without its power of two": {"lift, 0.0)": "1.0, 0.0)"},
    "results keep the power of two": {SCALE: "scale = back"},
    "results keep the sample's power of two": {SCALE: "scale = 1.0 / lift"},
    "bias keeps the sample's power of two": {"total * (back * ": "total * (1.0 * "},
    "bias not divided by the temperature": {"back * inverse_temperature)": "back)"},
    "softmax not divided by the temperature": {"(inverse_temperature * LOG2_E)": "LOG2_E"},
    "softmax in powers of two": {"(inverse_temperature * LOG2_E)": "inverse_temperature"},
    "mean of dA forgotten": {"d_assignment - mean[:, None]": "d_assignment"},
    "mean without weights": {"gl.sum(soft * d_assignment, 1)": "gl.sum(d_assignment, 1)"},
    "offset of dA forgotten": {"d_assignment += offset[None, :]": "pass"},
    "bias forgotten": {"logits += bias[None, :]": "pass"},
    "noise forgotten": {"logits += noise": "pass"},
    "noise of the first tile": {"sample_start, start, last": "sample_start, first, last"},
    "tokens past the end take part": {f"gl.where(present[:, None], {CHANGE}, 0.0)": CHANGE},
    "index of the first tile": {"index + token": "index + token - tile * BLOCK_L"},
    "bias of the last tile": {"sums += sum_in_threads": "sums = sum_in_threads"},
    "h multiplies dlogit": {"rows.slice(0, BLOCK_G)": "rows.slice(BLOCK_G, BLOCK_G)"},
    "queries multiply A": {"rows.slice(BLOCK_G, BLOCK_G)": "rows.slice(0, BLOCK_G)"},
    "tokens' gradient without A": {f"d_x = warpgroup_mma({H_PRODUCT}is_async=True)": "pass"},
    "tokens' gradient without dlogit": {H_PRODUCT: f"{H_PRODUCT}use_acc=False, "},
    "queries and h of the first columns": {"[places[0], 0, part * BLOCK_C]": "[places[0], 0, 0]"},
    "columns of the gradient turned round": {
        WRITTEN_AT: WRITTEN_AT.replace("part", "(SLICES - 1 - part)")
    },
    "sums of the last tile only": {SUM: SUM.replace("is_async", "use_acc=False, is_async")},
    "sums of the first slice": {"sums[part] * scale": "sums[0] * scale"},
    "sums in the order of columns": {ORDER: "gl.arange(0, BLOCK_G, layout=None)"},
}
TWO_SAMPLES = COLD | {"batch": 2, "length": 70}
SAMPLE_BUGS = {
    "queries and h of sample 0": {"[places[0], 0, part": "[0, 0, part"},
    "seed of sample 0": {"gl.load(seeds + sample)": "gl.load(seeds)"},
    "offsets of sample 0": {"offsets + sample * GROUPS": "offsets"},
    "index of sample 0": {"index + wide_sample * length": "index"},
    "scale of sample 0": {"gl.load(unscale + sample)": "gl.load(unscale)"},
}
SOFT = MAIN | {"mode": "soft", "temperature": 3.0}
SPLIT = {"dtype": torch.float16} | CALLS["splits"]
TOKENS_OF_ALL_SPLITS = "every split takes the first tokens"
OTHER_BUGS = {
    "soft A without its power of two": (SOFT, {"soft * lift": "soft"}),
    TOKENS_OF_ALL_SPLITS: (SPLIT, {"0) % SPLITS * chunk": "0) * 0"}),
}
DROPPED = {"dtype": torch.float16, "plan": WHOLE} | CALLS["dropped tokens"]
TILE_BUGS = {
    "halves exchanged": (COLD, {"first, second = gl.split": "second, first = gl.split"}),
    "logits in the order of columns": (COLD, {"(0, 3, 2, 4, 1)": "(0, 2, 3, 4, 1)"}),
    "factors in the order of groups": (
        COLD,
        {"gl.reshape(gl.permute(quads, (0, 2, 1, 3)), [BLOCK_L, BLOCK_G])": "values"},
    ),
    "bias of sample 0": (TWO_SAMPLES, {"group_bias + sample * GROUPS": "group_bias"}),
    "noise by position": (DROPPED, {"if token_ids is not None:": "if False:"}),
}


@pytest.mark.parametrize("name", [*VALUE_BUGS, *SAMPLE_BUGS, *OTHER_BUGS])
def test_wrong_results_are_caught(check_gluon_backward, plant, name):
    bugs = {bug: (COLD, replaced) for bug, replaced in VALUE_BUGS.items()} | OTHER_BUGS
    bugs |= {bug: (TWO_SAMPLES, replaced) for bug, replaced in SAMPLE_BUGS.items()}
    call, replaced = bugs[name]
    mutant = plant(replaced)
    require_caught(
        lambda seed: check_gluon_backward(call, seed, mutant),
        "memory" if name == TOKENS_OF_ALL_SPLITS else WRONG,
    )


@pytest.mark.parametrize("name", TILE_BUGS)
def test_wrong_device_functions_are_caught(check_gluon_backward, mutate, name):
    call, replaced = TILE_BUGS[name]
    mutate(gluon_tiles, replaced)
    require_caught(lambda seed: check_gluon_backward(call, seed), WRONG)
