"""The streaming backward: when a call takes it, and every path of it against float64."""

import dataclasses
import importlib

import pytest
import torch

from svilm_fast.kernels import grouping
from svilm_fast.kernels.grouping.fused.stream import lift_of, streamable
from svilm_fast.kernels.grouping.options import GroupingOptions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Two tiles and a part of one, in one program.
TILES = (("block_tokens", 16), ("splits", 1), ("chunk", 48))
SHAPES = {
    "parts of a tile and of a block": {"length": 37, "width": 144, "plan": TILES},
    "whole tiles": {"length": 32, "width": 128, "plan": TILES},
    "one tile of the plan": {"length": 33, "width": 64},
    "narrow": {"length": 20, "width": 16, "plan": TILES},
    "one token": {"length": 1, "batch": 1, "groups": 1},
    "many groups": {"groups": 32, "length": 37, "plan": TILES},
    "splits": {"length": 45, "plan": (("block_tokens", 16), ("splits", 2), ("chunk", 32))},
    "splits of nothing": {
        "length": 20, "plan": (("block_tokens", 16), ("splits", 3), ("chunk", 16)),
    },
    "soft": {"mode": "soft", "length": 37, "temperature": 3.0, "plan": TILES},
    "hard, cold": {"mode": "hard", "temperature": 0.2, "sharpness": 4.0, "plan": TILES},
    "dropped tokens": {"dropped": True, "bias": None, "length": 37, "plan": TILES},
    "small gradient": {"upstream": 1e-6, "plan": TILES},
}  # fmt: skip


@pytest.fixture
def streams(monkeypatch):
    """The calls that took the streaming kernel so far."""
    backward = importlib.import_module("svilm_fast.kernels.grouping.fused.backward")
    start, taken = backward.start_stream, []

    def counted(*arguments):
        taken.append(arguments)
        start(*arguments)

    monkeypatch.setattr(backward, "start_stream", counted)
    return taken


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU other than Hopper takes the other kernel")
@pytest.mark.parametrize("name", SHAPES)
def test_against_float64(check_grouping, streams, name):
    check_grouping(check_grouping.Regime(**({"dtype": torch.float16} | SHAPES[name])))
    assert len(streams) == 1


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU other than Hopper takes the other kernel")
def test_bf16_against_float64(check_grouping, streams):
    shape = SHAPES["parts of a tile and of a block"]
    check_grouping(check_grouping.Regime(**shape, dtype=torch.bfloat16))
    assert len(streams) == 1


@pytest.mark.parametrize("needed", ["queries", "tokens", "group_bias"])
def test_only_needed_gradients_are_computed(check_grouping, needed):
    regime = check_grouping.Regime(dtype=torch.float16, length=20)
    arguments, d_pooled, d_counts = check_grouping.make(regime)
    d_pooled = d_pooled.half()
    _, everything = check_grouping.run(arguments, "fused", d_pooled, d_counts)
    arguments[needed] = arguments[needed].clone().requires_grad_()
    out = grouping(**arguments, backend="fused")
    (alone,) = torch.autograd.grad(
        (out.pooled, out.counts), arguments[needed], (d_pooled, d_counts)
    )
    assert torch.equal(alone, everything[needed])


@pytest.mark.parametrize(
    "change",
    [
        {"masked": True},
        {"temperature": 2.0**-11},
        {"temperature": 2.0**11},
        {"dtype": torch.float32},
    ],
    ids=str,
)
def test_other_calls_take_the_other_kernel(check_grouping, streams, change):
    regime = {"dtype": torch.float16, "length": 9, "mode": "soft", "sharpness": 2.0**-8}
    arguments, d_pooled, d_counts = check_grouping.make(check_grouping.Regime(**(regime | change)))
    check_grouping.run(arguments, "fused", d_pooled.to(arguments["tokens"].dtype), d_counts)
    assert not streams


def test_the_other_kernel_agrees_in_half_precision(check_grouping, streams):
    regime = check_grouping.Regime(
        dtype=torch.float16, length=37, width=144, plan=(("stream", False), ("stages", 2))
    )
    check_grouping(regime)
    assert not streams


def test_masked_and_missing_tokens_do_not_stream():
    tokens = torch.zeros(2, 4, 16, dtype=torch.float16, device=DEVICE)
    options = GroupingOptions(mode="hard")
    assert streamable(tokens, options)
    mask = torch.ones(2, 4, dtype=torch.bool, device=DEVICE)
    assert not streamable(tokens, dataclasses.replace(options, token_mask=mask))
    assert not streamable(tokens[:, :0], options)


def gradients_of(tokens):
    leaves = [torch.ones(len(tokens), 3, 16, dtype=tokens.dtype, device=DEVICE), tokens]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = grouping(*leaves, mode="soft", temperature=0.4, backend="fused")
    return torch.autograd.grad(out.pooled.float().square().sum(), leaves)


@pytest.mark.parametrize("axes", [(0, 2, 1), (2, 0, 1)], ids=["one token", "one sample"])
def test_any_stride_of_an_axis_of_size_1(streams, axes):
    """Such tokens are contiguous for PyTorch, but a descriptor needs dense strides."""
    shape = {(0, 2, 1): (2, 16, 1), (2, 0, 1): (5, 16, 1)}[axes]
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half().to(DEVICE)
    found = gradients_of(tokens.permute(axes))
    dense = gradients_of(tokens.permute(axes).clone(memory_format=torch.contiguous_format))
    assert all(torch.equal(one, other) for one, other in zip(found, dense))


def test_bits_do_not_depend_on_the_address(streams):
    memory = torch.randn(2 * 9 * 16 + 1, generator=torch.Generator().manual_seed(0)).half()
    misaligned = memory.to(DEVICE)[1:].view(2, 9, 16)
    assert misaligned.data_ptr() % 16
    found, expected = gradients_of(misaligned), gradients_of(misaligned.clone())
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.parametrize("temperature", [2.0**-10, 0.3, 0.5, 1.0, 1.7, 2.0**10])
def test_lift_is_the_power_of_two_below(temperature):
    lift = lift_of(temperature)
    assert lift <= temperature < 2 * lift
    assert torch.tensor(lift, dtype=torch.float16).item() == lift
