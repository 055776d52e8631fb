"""Planted bugs: the numerics protocol must find every one."""

import pytest

from svilm_fast.kernels.backend import interpreted

# Everything must be loaded before a bug is planted: what is first imported meanwhile would keep it.
from svilm_fast.kernels.grounding.fused import (  # noqa: F401
    backward,
    finish,
    forward,
    function,
    matrix,
    resident,
    tiles,
)

MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (backward, finish, forward, matrix, resident, tiles)
}

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

# name -> (module, old text, new text, the regimes that catch it)
BUGS = {
    "forward softmax counts padded groups": (
        "tiles",
        "group_power(exponent, G, PADDED_G)\n    # r_ijk",
        "group_power(exponent, PADDED_G, PADDED_G)\n    # r_ijk",
        ["padded groups"],
    ),
    "backward softmax counts padded groups": (
        "tiles",
        "group_power(exponent, G, PADDED_G)\n    share",
        "group_power(exponent, PADDED_G, PADDED_G)\n    share",
        ["padded groups"],
    ),
    "mean over all noun slots": (
        "forward",
        "tl.maximum(count, 1.0)",
        "tl.maximum(count * 0.0 + K, 1.0)",
        ["plain"],
    ),
    "absent nouns are not zeroed": (
        "forward",
        "mask = (present > 0)[:, None] & (columns < D)[None, :]",
        "mask = (inside & (noun < K))[:, None] & (columns < D)[None, :]",
        ["plain"],
    ),
    "weights left out": (
        "tiles",
        "similarity * weight",
        "similarity / PADDED_K",
        ["plain"],
    ),
    "beta is not clamped": (
        "tiles",
        "return tl.minimum(value, BETA_MAX, propagate_nan=tl.PropagateNan.ALL)",
        "return tl.load(beta).to(tl.float32)",
        ["beta beyond"],
    ),
    "power of e instead of 2": (
        "tiles",
        "slope = sharpness * LOG2_E",
        "slope = sharpness * 1.0",
        ["plain"],
    ),
    "gradient of the softmax left out": (
        "tiles",
        "gradient = weighted + LN_2 * moment",
        "gradient = weighted",
        ["plain"],
    ),
    "gradient not centred": (
        "tiles",
        "centred = exponent - mean[:, :, None]",
        "centred = exponent - 0.0 * mean[:, :, None]",
        ["plain"],
    ),
    "beta gradient from one side of the clamp only": (
        "finish",
        "(raw > BETA_MAX) & (slope < 0.0)",
        "(raw >= BETA_MAX) & (slope != 0.0)",
        ["sharp"],
    ),
    "rows keep captions that are not valid": (
        "matrix",
        "in_row = inside & (tl.load(valid + column, mask=column < size, other=0) != 0)[None, :]",
        "in_row = inside",
        ["plain"],
    ),
    "columns drop videos whose caption is not valid": (
        "matrix",
        "by_column = tl.exp2(logits - column_lse)",
        'by_column = tl.where(row_lse < float("inf"), tl.exp2(logits - column_lse), 0.0)',
        ["plain"],
    ),
    "pairs that are not valid are pulled together": (
        "matrix",
        "tl.where(counted, by_row + by_column - tl.where(diagonal, 2.0, 0.0), 0.0)",
        "tl.where(counted, by_row + by_column, 0.0) - tl.where(diagonal, 2.0, 0.0)",
        ["matrix small"],
    ),
    "rows that are not valid have a softmax": (
        "matrix",
        'tl.where(taken, rows, float("inf"))',
        "rows",
        ["plain"],
    ),
    "a step writes its gradient to the next tile": (
        "resident",
        "(tile - 1) * BLOCK_N",
        "tile * BLOCK_N",
        ["two tiles each way"],
    ),
    "a step writes its scores to the next tile": (
        "resident",
        "(tile - 1) * TILE_VIDEOS",
        "tile * TILE_VIDEOS",
        ["two tiles each way"],
    ),
    "products pile up over the tiles": (
        "resident",
        "            dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)\n",
        "            dots = dots\n",
        ["two tiles each way"],
    ),
    "a step takes the pairs of the next one": (
        "resident",
        "            if tile > first:\n                beta_terms,",
        "            pair, row_lse = loaded\n"
        "            if tile > first:\n                beta_terms,",
        ["two tiles each way"],
    ),
    "a strip's last tile left out": (
        "resident",
        "end = stop + 1",
        "end = stop",
        ["plain"],
    ),
    "a caption counts once per noun": (
        "resident",
        "row % PADDED_K == 0",
        "row % PADDED_K >= 0",
        ["plain"],
    ),
    "both halves of a tile take the left one's upstream": (
        "resident",
        "upstreams[half]",
        "upstreams[0]",
        ["two tiles each way"],
    ),
    "loss divides by all pairs": (
        "matrix",
        "count = tl.where(taken, 1.0, 0.0)",
        "count = tl.where(inside, 1.0, 0.0)",
        ["plain"],
    ),
    "later partial sums are not rescaled": (
        "matrix",
        "total = total * tl.exp2(largest - shift)",
        "total = total * 1.0",
        ["matrix many partials"],
    ),
    "padded columns count as zero logits": (
        "matrix",
        'by_column = tl.where(inside, logits, float("-inf"))',
        "by_column = logits",
        ["plain"],
    ),
    "upstream gradient of the loss is ignored": (
        "finish",
        "pair_factor = tl.load(loss_upstream) / ",
        "pair_factor = 1.0 / ",
        ["plain"],
    ),
    "scale left out of the gradient": (
        "finish",
        "score_factor = pair_factor * tl.load(scale).to(tl.float32)",
        "score_factor = pair_factor",
        ["plain"],
    ),
    "chunk reads the first chunk's scores": (
        "resident",
        "video = first_video + tile * TILE_VIDEOS",
        "video = first_video * 0 + tile * TILE_VIDEOS",
        ["chunks"],
    ),
    "later chunks overwrite the noun gradient": (
        "backward",
        "first=start == 0",
        "first=True",
        ["chunks"],
    ),
    "partial sums of chunks overwrite each other": (
        "backward",
        "number * programs_per_chunk,",
        "0 * programs_per_chunk,",
        ["chunks"],
    ),
    "float16 overflows": (
        "finish",
        "bound = 2.0 + beta",
        "bound = 0.001 + 0.0 * beta",
        ["sharp"],
    ),
    "float16 underflows": (
        "finish",
        "floor_power_of_two(32768.0 / ",
        "floor_power_of_two(0.0001 / ",
        ["plain"],
    ),
    "gradient of the dot products in bfloat16": (
        "resident",
        "values.to(gradient.dtype)",
        "values.to(tl.bfloat16).to(gradient.dtype)",
        ["plain"],
    ),
    "tile's last row left out": (
        "tiles",
        "tl.minimum(first_row + tl.arange(0, BLOCK_M), total_rows - 1)",
        "tl.minimum(first_row + tl.arange(0, BLOCK_M), total_rows - 2)",
        ["float32 one group"],
    ),
    "float32 products in half precision": (
        "tiles",
        "            tl.load(noun_at + start),\n",
        "            tl.load(noun_at + start).to(tl.float16).to(nouns.dtype.element_ty),\n",
        ["float32"],
    ),
}
FAST = [
    "forward softmax counts padded groups",
    "mean over all noun slots",
    "absent nouns are not zeroed",
    "gradient not centred",
    "columns drop videos whose caption is not valid",
    "later chunks overwrite the noun gradient",
    "float16 overflows",
    "gradient of the dot products in bfloat16",
    "a step writes its gradient to the next tile",
    "a step takes the pairs of the next one",
    "a strip's last tile left out",
]


def plant(mutate, name):
    module, old, new, _ = BUGS[name]
    mutate(MODULES[module], {old: new})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BUGS]
)
def test_bug_is_caught(name, mutate, numerics, monkeypatch):
    """By the regimes named beside it; the whole protocol, which holds them, then catches it too."""
    for module in (forward, backward):  # small inputs alone would give strips of one tile
        monkeypatch.setattr(module, "strip_tiles", lambda *_: 2)
    plant(mutate, name)
    assert next(numerics(BUGS[name][3]), None) is not None
