"""Planted bugs: the numerics protocol must find every one."""

import pytest

from svilm_fast.kernels.backend import interpreted

# Everything must be loaded before a bug is planted: what is first imported meanwhile would keep it.
from svilm_fast.kernels.grounding.fused import backward, finish, forward, function, matrix  # noqa: F401

MODULES = {
    module.__name__.rpartition(".")[2]: module for module in (backward, finish, forward, matrix)
}

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

# name -> (module, old text, new text, the regimes that catch it)
BUGS = {
    "forward softmax counts padded groups": (
        "forward",
        "group_power(dots, load_beta(beta), G, PADDED_G)",
        "group_power(dots, load_beta(beta), PADDED_G, PADDED_G)",
        ["padded groups"],
    ),
    "backward softmax counts padded groups": (
        "backward",
        "group_power(dots, sharpness, G, PADDED_G)",
        "group_power(dots, sharpness, PADDED_G, PADDED_G)",
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
        "forward",
        "similarity * weight[:, None]",
        "similarity / PADDED_K",
        ["plain"],
    ),
    "beta is not clamped": (
        "forward",
        "return tl.minimum(value, BETA_MAX, propagate_nan=tl.PropagateNan.ALL)",
        "return tl.load(beta).to(tl.float32)",
        ["beta beyond"],
    ),
    "power of e instead of 2": (
        "forward",
        "exponent = dots * (sharpness * LOG2_E)",
        "exponent = dots * sharpness",
        ["plain"],
    ),
    "gradient of the softmax left out": (
        "backward",
        "(power + sharpness * moment)",
        "power",
        ["plain"],
    ),
    "gradient not centred": (
        "backward",
        "centred = dots - similarity[:, :, None]",
        "centred = dots - 0.0 * similarity[:, :, None]",
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
        "by_column = tl.where(column_valid, ",
        "by_column = tl.where(column_valid & row_valid, ",
        ["plain"],
    ),
    "pairs that are not valid are pulled together": (
        "matrix",
        "diagonal & row_valid",
        "diagonal & (column_valid | True)",
        ["matrix small"],
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
        "backward",
        "video = first_video + in_chunk",
        "video = first_video * 0 + in_chunk",
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
        "number * tiles_per_chunk,",
        "0 * tiles_per_chunk,",
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
        "backward",
        "values = tl.reshape(gradient, (BLOCK_M, BLOCK_N)).to(dots_gradient.dtype.element_ty)",
        "values = tl.reshape(gradient, (BLOCK_M, BLOCK_N)).to(tl.bfloat16)"
        ".to(dots_gradient.dtype.element_ty)",
        ["plain"],
    ),
    "tile's last row left out": (
        "forward",
        "tl.minimum(first_row + tl.arange(0, BLOCK_M), total_rows - 1)",
        "tl.minimum(first_row + tl.arange(0, BLOCK_M), total_rows - 2)",
        ["one group"],
    ),
    "float32 products in half precision": (
        "forward",
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
]


def plant(mutate, name):
    module, old, new, _ = BUGS[name]
    mutate(MODULES[module], {old: new})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BUGS]
)
def test_bug_is_caught(name, mutate, numerics):
    """By the regimes named beside it; the whole protocol, which holds them, then catches it too."""
    plant(mutate, name)
    assert next(numerics(BUGS[name][3]), None) is not None
