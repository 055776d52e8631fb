"""The Gluon kernel of backward in its interpreter: many schedules, and the op around it."""

import dataclasses
import logging

import pytest
import torch

from svilm_fast.kernels import backend, grouping
from svilm_fast.kernels.backend import interpreted, use_backend
from svilm_fast.kernels.device import A100, assume_traits
from svilm_fast.kernels.grouping.cases import VARIANTS
from svilm_fast.kernels.grouping.fused import backward, gluon_backward, gluon_forward
from svilm_fast.kernels.launch import Launch, record_launches
from tests.bars import SEED_OFFSET
from tests.kernels.gluon_interpreter import interpret
from tests.kernels.grouping.gluon_calls import CALLS, MAIN, WHOLE, planned

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets on the CPU")

BACKWARD_CALLS = CALLS | {
    "soft": {"length": 100, "mode": "soft", "temperature": 3.0},
    "cold": {"length": 100, "temperature": 0.2, "sharpness": 4.0},
    "small gradient": {"length": 100, "upstream": 1e-6},
}


@pytest.mark.parametrize("name", BACKWARD_CALLS)
def test_calls_against_float64(check_gluon_backward, name):
    check_gluon_backward({"dtype": torch.float16, "plan": WHOLE} | BACKWARD_CALLS[name])


@pytest.mark.parametrize("number", [6, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stages", [(2, 2), (3, 5), (4, 3), (8, 5)])
def test_many_schedules(check_gluon_backward, stages, number):
    for seed in range(number):
        check_gluon_backward(MAIN | {"temperature": 0.3}, seed, stages=stages)


def test_every_slice_is_multiplied_twice_and_written_once(check_gluon_backward):
    (log,) = check_gluon_backward(MAIN)
    found = {
        role: [slot for partition, slot in log if partition.startswith(role)]
        for role in ("compute_factors", "write_token_gradient", "add_query_gradient")
    }
    assert found == {
        "compute_factors": [f"ring[{copy % 5}]" for copy in range(12)],
        "write_token_gradient": 12 * ["d_logits", "shares"],
        "add_query_gradient": [f"again[{copy % 3}]" for copy in range(12)],
    }


def test_factors_of_a_tile_do_not_wait_for_the_gradients_of_the_one_before(check_gluon_backward):
    """In some schedule, the products of a tile begin before those of the tile before."""
    early = set()
    for seed in range(4):
        (log,) = check_gluon_backward(MAIN, seed)
        partitions = [partition.split(" ")[0] for partition, _ in log]
        second = [at for at, name in enumerate(partitions) if name == "compute_factors"][3]
        for role in ("write_token_gradient", "add_query_gradient"):
            if role not in partitions[:second]:
                early.add(role)
    assert early == {"write_token_gradient", "add_query_gradient"}


@pytest.fixture
def whole_op(monkeypatch):
    """Lets backward on the CPU take the Gluon kernel in its interpreter; counts its launches."""
    launches = []

    def run(kernel, grid, *args, **meta):
        launches.append(grid)
        interpret(Launch(kernel, grid, args, meta), len(launches) + SEED_OFFSET)

    monkeypatch.setattr(gluon_backward, "launch", run)
    monkeypatch.setattr(gluon_backward, "SLICE", 16)
    monkeypatch.setattr(backward, "gluon_wanted", lambda _: True)
    return launches


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
@pytest.mark.parametrize(
    ("splits", "change"),
    [(1, {"dropped": True}), (2, {"temperature": 0.3, "groups": 17}), (1, {"upstream": 1e-6})],
)
def test_gradients_of_the_op_against_float64(check_grouping, whole_op, splits, change):
    """Queries and h come from the kernel that prepares them, in the order of quads."""
    cut = (("splits", splits), ("chunk", 128 // splits), ("block_tokens", 64))
    check_grouping(
        check_grouping.Regime(**{"dtype": torch.float16, "length": 100, "plan": cut} | change)
    )
    assert whole_op == [(2 * splits,)]


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
@pytest.mark.parametrize("needed", ["queries", "tokens"])
def test_one_gradient_alone_stays_plain(check_grouping, whole_op, needed):
    arguments, *upstream = check_grouping.make(check_grouping.Regime(dtype=torch.float16, length=9))
    arguments[needed] = arguments[needed].requires_grad_()
    out = grouping(**arguments, backend="fused")
    upstream[0] = upstream[0].half()
    torch.autograd.grad((out.pooled, out.counts), arguments[needed], upstream)
    assert whole_op == []


def recorded(label, choice):
    """Names of the kernels that a declared variant launches."""
    variant = next(variant for variant in VARIANTS if variant.label == label)
    with use_backend(choice), record_launches() as launches:
        variant.run()
    return [one.kernel.__name__ for one in launches]


@pytest.mark.parametrize("label", ["target bfloat16 backward", "few_clips float16 backward"])
def test_the_choice_replaces_one_launch(label):
    plain, gluon = recorded(label, "fused"), recorded(label, "gluon")
    assert plain[1] == "grouping_backward_stream_kernel"
    assert gluon == [plain[0], "gluon_grouping_backward_kernel", *plain[2:]]
    assert recorded(label, "auto") == plain


@pytest.mark.parametrize("label", ["large bfloat16 backward", "target bfloat16 masked backward"])
def test_what_gluon_does_not_take_stays_plain_and_is_said_once(monkeypatch, caplog, label):
    monkeypatch.setattr(backend, "_said", set())
    with caplog.at_level(logging.INFO):
        plain = recorded(label, "fused")
        assert caplog.messages == []
        assert recorded(label, "gluon") == recorded(label, "gluon") == plain
    (message,) = caplog.messages
    assert message.startswith("grouping: plain kernels instead of Gluon, because backward does not")


def test_calls_that_gluon_takes(check_grouping):
    arguments, _, _ = check_grouping.make(check_grouping.Regime(dtype=torch.float16))
    tokens = arguments["tokens"]
    cut = planned(arguments, (), backward=True)
    obstacle = gluon_backward.gluon_obstacle
    assert obstacle(cut, tokens, need_tokens=True, need_queries=True) is None
    for needs in ((True, False), (False, True)):
        assert obstacle(cut, tokens, *needs) == "only one of the gradients is needed"
    other = dataclasses.replace(cut, stream=False)
    assert obstacle(other, tokens, True, True).startswith("backward does not stream")
    memory = torch.zeros(tokens.numel() + 1, dtype=torch.float16)
    misaligned = memory[1:].view(tokens.shape)
    assert "not aligned to 16 bytes" in obstacle(cut, misaligned, True, True)


def test_other_gpus_stay_plain():
    with assume_traits(A100):
        names = recorded("few_clips float16 backward", "gluon")
    assert "gluon_grouping_backward_kernel" not in names


def test_the_rings_and_all_else_fit_the_shared_memory():
    """At 32 groups x 768, whose sums are the most that the plan allows."""
    size = 2 * gluon_backward.SLICE * 64
    stages = gluon_backward.STAGES + gluon_backward.AGAIN_STAGES + 2
    assert 12 * size + size + stages * size <= 232_448 - 2_048
    assert gluon_backward.SLICE == gluon_forward.SLICE
