"""The Gluon kernel in its interpreter: results under many schedules, and the op around it."""

import logging

import pytest
import torch

from svilm_fast.kernels import backend
from svilm_fast.kernels.backend import interpreted, use_backend
from svilm_fast.kernels.device import A100, assume_traits
from svilm_fast.kernels.grouping.cases import VARIANTS
from svilm_fast.kernels.grouping.fused import forward, gluon_forward
from svilm_fast.kernels.launch import Launch, record_launches
from tests.bars import SEED_OFFSET
from tests.kernels.gluon_interpreter import interpret
from tests.kernels.grouping.gluon_calls import CALLS, MAIN, WHOLE, options_of, planned, run_kernel

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets on the CPU")


@pytest.mark.parametrize("name", CALLS)
def test_calls_against_float64(check_gluon, name):
    for seed in range(2):
        check_gluon({"dtype": torch.float16, "plan": WHOLE} | CALLS[name], seed)


@pytest.mark.parametrize("stages", [3, 4, 5, 8])
def test_a_hundred_schedules(check_gluon, stages):
    for seed in range(25):
        check_gluon(MAIN, seed, stages=stages)


def test_pooling_of_a_tile_follows_its_logits(check_gluon):
    (log,) = check_gluon(MAIN)
    assert len(log) == 2 * 4 * 3
    for role in ("assign_tokens", "pool_tokens"):
        stages = [slot for partition, slot in log if partition.startswith(role)]
        assert stages == [f"ring[{copy % 5}]" for copy in range(12)]


@pytest.mark.skipif(not interpreted(), reason="runs the plain kernel through the interpreter")
@pytest.mark.parametrize("groups", [6, 32])
@pytest.mark.parametrize("mode", ["hard", "gumbel"])
def test_ties_and_index_are_those_of_the_plain_kernel(check_grouping, monkeypatch, mode, groups):
    """Small integers: logits are exact, so without noise many tokens have several best groups."""
    regime = check_grouping.Regime(
        mode=mode, dtype=torch.float16, length=200, groups=groups, dropped=True, plan=WHOLE
    )
    arguments, _, _ = check_grouping.make(regime)
    for name in ("tokens", "queries"):
        arguments[name] = (2 * arguments[name]).round().clamp(-2, 2)
    arguments["group_bias"] = arguments["group_bias"].round()
    inputs = [arguments[name] for name in ("queries", "tokens", "group_bias")]
    plain = forward.forward(planned(arguments, WHOLE), *inputs, options_of(arguments))
    monkeypatch.setattr(gluon_forward, "SLICE", 16)
    pooled, counts, index, _ = run_kernel(gluon_forward, arguments, WHOLE, 0)
    assert torch.equal(index, plain[2])
    assert torch.equal(counts, plain[1])
    # Sums of small integers are exact too.
    assert torch.equal(pooled, plain[0])
    if mode == "hard":
        logits = inputs[1].float() @ inputs[0].float().mT + inputs[2][:, None]
        assert ((logits == logits.amax(-1, keepdim=True)).sum(-1) > 1).float().mean() > 0.02


@pytest.fixture
def whole_op(monkeypatch):
    """Lets calls on the CPU take the Gluon kernel in its interpreter; counts its launches."""
    launches = []

    def run(kernel, grid, *args, **meta):
        launches.append(grid)
        interpret(Launch(kernel, grid, args, meta), len(launches) + SEED_OFFSET)

    monkeypatch.setattr(gluon_forward, "launch", run)
    monkeypatch.setattr(gluon_forward, "SLICE", 16)
    monkeypatch.setattr(forward, "gluon_wanted", lambda _: True)
    return launches


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
@pytest.mark.parametrize("splits", [1, 2])
def test_results_and_gradients_against_float64(check_grouping, whole_op, splits):
    cut = (("splits", splits), ("chunk", 128 // splits), ("block_tokens", 64))
    regime = check_grouping.Regime(dtype=torch.float16, length=100, dropped=True, plan=cut)
    check_grouping(regime)
    assert whole_op == [(2 * splits,)]


def recorded(label, choice):
    """Names of the kernels that a declared variant launches."""
    variant = next(variant for variant in VARIANTS if variant.label == label)
    with use_backend(choice), record_launches() as launches:
        variant.run()
    return [one.kernel.__name__ for one in launches]


@pytest.mark.parametrize("label", ["target bfloat16 forward", "few_clips float16 forward"])
def test_the_choice_replaces_one_launch(label):
    plain, gluon = recorded(label, "fused"), recorded(label, "gluon")
    assert plain[0] == "grouping_forward_kernel"
    assert gluon == ["gluon_grouping_forward_kernel", *plain[1:]]
    assert recorded(label, "auto") == plain


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("large bfloat16 forward", "the sums must fit one program, with at most 32 groups"),
        ("few_clips float32 forward", "fp32 products take three steps of tf32"),
    ],
)
def test_what_gluon_does_not_take_stays_plain_and_is_said_once(monkeypatch, caplog, label, reason):
    monkeypatch.setattr(backend, "_said", set())
    with caplog.at_level(logging.INFO):
        plain = recorded(label, "fused")
        assert caplog.messages == []
        assert recorded(label, "gluon") == recorded(label, "gluon") == plain
    assert caplog.messages == [f"grouping: plain kernels instead of Gluon, because {reason}"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"mode": "hard", "bias": None, "dropped": True}, None),
        ({"masked": True}, "masked tokens may hold NaN and a copy cannot leave them out"),
        ({"mode": "soft"}, "mode soft has no one-hot assignment"),
        ({"groups": 33}, "the sums must fit one program, with at most 32 groups"),
        ({"length": 0}, "the tokens are empty or not aligned to 16 bytes"),
    ],
)
def test_calls_that_gluon_takes(check_grouping, change, reason):
    regime = check_grouping.Regime(**{"dtype": torch.bfloat16} | change)
    arguments, _, _ = check_grouping.make(regime)
    cut, options = planned(arguments, ()), options_of(arguments)
    assert gluon_forward.gluon_obstacle(cut, arguments["tokens"], options) == reason


def test_misaligned_tokens_stay_plain(check_grouping):
    arguments, _, _ = check_grouping.make(check_grouping.Regime(dtype=torch.float16))
    memory = torch.zeros(arguments["tokens"].numel() + 1, dtype=torch.float16)
    tokens = memory[1:].view(arguments["tokens"].shape)
    reason = gluon_forward.gluon_obstacle(planned(arguments, ()), tokens, options_of(arguments))
    assert "not aligned to 16 bytes" in reason


def test_other_gpus_stay_plain():
    with assume_traits(A100):
        names = recorded("few_clips float16 forward", "gluon")
    assert "gluon_grouping_forward_kernel" not in names
