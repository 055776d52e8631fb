"""Bugs planted in grouping's kernels: the protocol catches every one."""

import importlib

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="planted bugs run interpreted")

# A call that takes the streaming backward: two tiles and a part, two blocks and a part.
STREAMED = {
    "dtype": torch.float16, "length": 37, "width": 144, "eps": 0.3,
    "plan": (("block_tokens", 16), ("splits", 1), ("chunk", 48)),
}  # fmt: skip

# name: (module, text, buggy text, the regime that must catch it)
BUGS = {
    "eps forgotten": (
        "forward", "value / (count + eps)[None, :]", "value / (count + 1e-6)[None, :]",
        {"mode": "hard", "plan": (("splits", 1), ("chunk", 64))},
    ),
    "bias forgotten": ("forward", "logits += bias[None, :]", "pass", {"mode": "hard"}),
    "mask forgotten in pooling": (
        "forward", "label = tl.where(present, tl.argmax(logits, axis=1), -1)",
        "label = tl.argmax(logits, axis=1)", {"mode": "hard", "masked": True},
    ),
    "sums rounded to half every tile": (
        "forward", "sums = updated", "sums = (updated[0].to(tl.float16).to(tl.float32),)",
        {"mode": "hard"},
    ),
    "prefetch takes the same tile again": (
        "forward", "start + BLOCK_L,", "start,",
        {"width": 80, "plan": (("prefetch", 1), ("splits", 1), ("chunk", 64))},
    ),
    "halves of a prefetched word exchanged": (
        "tiles", "tl.join((tile & 0xFFFF).to(tl.uint16), (tile >> 16).to(tl.uint16))",
        "tl.join((tile >> 16).to(tl.uint16), (tile & 0xFFFF).to(tl.uint16))",
        {"dtype": torch.float16, "width": 144, "plan": (("prefetch", 2),)},
    ),
    "last split forgotten": (
        "tiles", "range(1, SPLITS)", "range(1, SPLITS - 1)",
        {"plan": (("splits", 2), ("chunk", 32), ("block_tokens", 32))},
    ),
    "words of the generator in another order": (
        "primitives", "tl.join(tl.join(u0, u2), tl.join(u1, u3))",
        "tl.join(tl.join(u0, u1), tl.join(u2, u3))", {},
    ),
    "noise by position, not by original index": (
        "tiles", "if token_ids is None:", "if True:", {"dropped": True},
    ),
    "quads of the padded groups": (
        "primitives", "(GROUPS + 3) // 4", "BLOCK_G // 4", {},
    ),
    "one token past the end": (
        "tiles", "present = token < last", "present = token <= last", {"mode": "soft"},
    ),
    "padding groups take part": ("tiles", 'float("-inf")', "0.0", {"mode": "soft"}),
    "divisor left out of the gradient": ("backward", "- inner * inverse", "", {"mode": "hard"}),
    "gradient of the counts forgotten": (
        "backward", "offset = tl.load(d_counts + sample * GROUPS + group, mask=present, other=0.0)",
        "offset = 0.0", {"mode": "hard"},
    ),
    "eps taken for one": (
        "backward", "1.0 / (count + eps)", "1.0 / (count + 1.0)", {"mode": "hard", "eps": 0.3},
    ),
    "softmax without its mean": ("backward", "(d_assignment - mean)", "d_assignment", {}),
    "temperature forgotten in backward": (
        "backward", "back = tl.load(unscale + sample) * inverse_temperature",
        "back = tl.load(unscale + sample)", {"temperature": 0.5},
    ),
    "temperature forgotten in the token gradient": (
        "backward", "None, UPCAST) * inverse_temperature", "None, UPCAST)", {"temperature": 0.5},
    ),
    "no noise in backward": (
        "backward", "if NOISE:\n            seed", "if False:\n            seed", {},
    ),
    "masked tokens keep a gradient": (
        "backward", "d_logits = tl.where(present[:, None], d_logits, 0.0)", "pass",
        {"masked": True},
    ),
    "straight-through term forgotten": (
        "backward", "d_x = dot(assignment, tl.trans(h), d_x, UPCAST) * back",
        "d_x = d_x * back", {},
    ),
    "masked tokens are read": (
        "tiles", "mask = rows[:, None]", "mask = rows[:, None] | True",
        {"masked": True, "hidden": float("nan")},
    ),
    "scale not undone": (
        "backward", "d_x, UPCAST) * back", "d_x, UPCAST)", {"upstream": 1e-3},
    ),
    "no scale for small gradients": (
        "backward", "scale = tl.exp2(-exponent)\n    tl.store(unscale + sample, tl.exp2(exponent))",
        "scale = 1.0\n    tl.store(unscale + sample, 1.0)",
        {"dtype": torch.float16, "upstream": 1e-6},
    ),
    "half a block past the width": (
        "backward", "if WIDTH % BLOCK_C != 0:", "if False:", {"width": 96},
    ),
    "stream: products of the tile before stay": (
        "stream", "            dots = tl.zeros((BLOCK_L, 2 * BLOCK_G), tl.float32)\n        turn",
        "        turn", STREAMED,
    ),
    "stream: the query gradient of one block goes to all": (
        "stream", "if (turn & (1 << block)) != 0:", "if turn != 0:", STREAMED,
    ),
    "stream: the query gradient takes the tokens of the next tile": (
        "stream", "before = tokens.load([sample_index, start - BLOCK_L, column])",
        "before = tokens.load([sample_index, start, column])", STREAMED,
    ),
    "stream: no steps for the last tile's gradients": (
        "stream", "(tl.cdiv(last - first, BLOCK_L) + 1) * NUM_BLOCKS",
        "tl.cdiv(last - first, BLOCK_L) * NUM_BLOCKS", STREAMED,
    ),
    "stream: a store in front of the tokens of a split": (
        "stream", "tl.where(start > first, start, 0) - BLOCK_L", "start - BLOCK_L",
        STREAMED | {"length": 40, "plan": (("block_tokens", 16), ("splits", 2), ("chunk", 32))},
    ),
    "stream: tokens past the end take part": (
        "stream", "change = tl.where(present[:, None], soft * (d_assignment - mean), 0.0)",
        "change = soft * (d_assignment - mean)", STREAMED,
    ),
    "stream: temperature left out of the scale": (
        "stream", "d_x = dot(factors, qh, None, UPCAST) * (back / lift)",
        "d_x = dot(factors, qh, None, UPCAST) * back", STREAMED | {"temperature": 0.4},
    ),
    "stream: the assignment is not scaled": (
        "stream", "(assignment * lift).to(DTYPE)", "assignment.to(DTYPE)",
        STREAMED | {"temperature": 0.4},
    ),
    "stream: temperature forgotten in the query gradient": (
        "stream", "sums[block] * (back / lift)", "sums[block] * back",
        STREAMED | {"temperature": 0.4},
    ),
    "stream: temperature forgotten in the bias gradient": (
        "stream", "bias_sum * (back * inverse_temperature)", "bias_sum * back",
        STREAMED | {"temperature": 0.4},
    ),
    "stream: h before the queries": (
        "backward", "tl.store(shares + row + BLOCK_G * WIDTH, share, mask=inside)",
        "tl.store(shares + row + BLOCK_G * WIDTH, query, mask=inside)", STREAMED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_caught(check_grouping, mutate, poisoned_memory, name):
    module, text, buggy, regime = BUGS[name]
    regime = check_grouping.Regime(**regime)
    folder = "" if module == "primitives" else "grouping.fused."
    mutate(importlib.import_module(f"svilm_fast.kernels.{folder}{module}"), {text: buggy})
    with pytest.raises(AssertionError):
        check_grouping(regime)
    poisoned_memory.forget()


@pytest.mark.slow
@pytest.mark.parametrize("regime", {str(bug[3]): bug[3] for bug in BUGS.values()}.values(), ids=str)
def test_the_regimes_pass_without_a_bug(check_grouping, regime):
    check_grouping(check_grouping.Regime(**regime))
