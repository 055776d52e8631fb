"""Bugs planted in the temporal kernels: the protocol catches every one."""

import importlib

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="planted bugs run interpreted")

# name: (module, text, buggy text, the regime that must catch it)
BCE_BUGS = {
    "centres are sums": (
        "forward",
        "foreground / tl.maximum(n_foreground, 1.0)", "foreground", {},
    ),
    "no gradient through the centres": (
        "backward",
        "+ direction[:, None] * through_centres[None, :]", "", {},
    ),
    "temperature forgotten in backward": (
        "backward",
        "tl.load(upstream) * inverse_temperature", "tl.load(upstream)", {},
    ),
    "one-sided samples count": ("forward", "tl.where(both, mean, 0.0)", "mean", {}),
    "mean over all places": (
        "forward",
        "tl.sum(terms * present, axis=0) / tl.maximum(n_foreground + n_background, 1.0)",
        "tl.sum(terms * present, axis=0) / BLOCK_T", {},
    ),
    "log(1 + x) rounded": (
        "primitives",
        "return tl.where(rounded, x, tl.log(shifted) * x / tl.where(rounded, 1.0, shifted - 1.0))",
        "return tl.log(shifted)", {"confident": True, "temperature": 0.05, "masked": False},
    ),
    "half the slope of squares": (
        "backward",
        "slope = 2.0 * slope", "slope = slope", {"loss": "mse"},
    ),
}  # fmt: skip
POOL_BUGS = {
    "sums, not means": ("forward", "total / tl.maximum(count, 1.0)[None, :]", "total", {}),
    "mask forgotten": ("forward", "label = tl.where(kept != 0, label, -1)", "pass", {}),
    "share forgotten in backward": (
        "backward",
        "upstream.to(tl.float32) * share[:, None]", "upstream", {},
    ),
    "index of the first sample for all": (
        "forward",
        "row = 0 if SHARED_INDEX else sample * length", "row = 0", {},
    ),
    "outsiders join the first segment": (
        "forward",
        "tl.where((wide >= 0) & (wide < SEGMENTS), wide, -1)", "tl.maximum(wide, 0)", {},
    ),
    "an index is cut to 32 bits": (
        "forward",
        "tl.where((wide >= 0) & (wide < SEGMENTS), wide, -1).to(tl.int32)", "wide.to(tl.int32)",
        {"far": True},
    ),
    "tokens outside are read": (
        "forward",
        "mask = (label >= 0)[:, None] &", "mask = (token < length)[:, None] &", {"far": True},
    ),
}  # fmt: skip


def module(name):
    folder = "" if name == "primitives" else "temporal.fused."
    return importlib.import_module(f"svilm_fast.kernels.{folder}{name}")


@pytest.mark.parametrize("name", BCE_BUGS)
def test_planted_bug_in_bce_is_caught(check_bce, mutate, name):
    place, text, buggy, regime = BCE_BUGS[name]
    check_bce(check_bce.Regime(**regime))
    mutate(module(place), {text: buggy})
    with pytest.raises(AssertionError):
        check_bce(check_bce.Regime(**regime))


@pytest.mark.parametrize("name", POOL_BUGS)
def test_planted_bug_in_pool_is_caught(check_pool, mutate, name):
    place, text, buggy, regime = POOL_BUGS[name]
    check_pool(check_pool.Regime(**regime))
    mutate(module(place), {text: buggy})
    with pytest.raises(AssertionError):
        check_pool(check_pool.Regime(**regime))
