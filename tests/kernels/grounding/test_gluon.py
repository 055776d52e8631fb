"""The Gluon kernel in its interpreter: its gradient under many schedules, and the op around it."""

import itertools
import logging

import pytest
import torch

from svilm_fast.kernels import backend as choice_of_path
from svilm_fast.kernels.backend import interpreted, use_backend
from svilm_fast.kernels.device import A100, H200, assume_traits
from svilm_fast.kernels.grounding.fused import backward, gluon_gradient
from svilm_fast.kernels.grounding.fused.layout import layout_of
from svilm_fast.kernels.launch import Launch, record_launches
from tests.bars import SEED_OFFSET
from tests.kernels.gluon_interpreter import interpret
from tests.kernels.grounding.gluon_blocks import BLOCKS, LOSS, MAIN


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_of_ragged_blocks(check_gradient, name):
    check_gradient(BLOCKS[name])


@pytest.mark.parametrize("stages", [3, 4, 5, 6])
@pytest.mark.parametrize("number", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_many_schedules(check_gradient, stages, number):
    block = LOSS if stages == 6 else MAIN
    for seed in range(number * stages, number * stages + number):
        check_gradient(block, seed, stages=stages)


def test_every_schedule_gives_the_same_bits(check_gradient):
    _, first = check_gradient(LOSS, 0)
    for seed in range(1, 10):
        _, found = check_gradient(LOSS, seed, stages=4)
        for one, other in zip(found, first):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_the_groups_take_turns(check_gradient):
    for seed in range(5):
        ((log,), _) = check_gradient(MAIN, seed, stages=5)
        groups = [partition for partition, _ in log]
        steps = [groups[at : at + 3] for at in range(0, len(groups), 3)]
        assert [len(set(three)) for three in steps] == [1] * 10
        assert all(before[0] != after[0] for before, after in itertools.pairwise(steps))


@pytest.fixture
def whole_op(monkeypatch):
    """Lets calls on the CPU take the Gluon kernel in its interpreter; counts its launches."""
    launches = []

    def run(kernel, grid, *args, **meta):
        launches.append(grid)
        interpret(Launch(kernel, grid, args, meta), len(launches) + SEED_OFFSET)

    monkeypatch.setattr(gluon_gradient, "launch", run)
    monkeypatch.setattr(backward, "gluon_wanted", lambda _: True)
    return launches


WHOLE = {
    "plain": {},
    "padded": {"groups": 12, "dim": 48, "videos": 13, "nouns": 3, "counts": (3, 0, 1, 2)},
    "tile of two videos": {"groups": 64, "videos": 4, "dim": 80, "counts": (1, 2)},
    "lone pair": {"videos": 1, "counts": (2,)},
    "sharp": {"beta": 60.0, "scale": 100.0, "groups": 32, "videos": 9},
    "flat": {"beta": 0.0, "scale": 1.0},
    "long vectors": {"kind": "long", "beta": 60.0, "videos": 9},
    "confident": {"scale": 6.0, "beta": 60.0, "kind": "confident", "videos": 20},
    "bfloat16": {"dtype": torch.bfloat16, "videos": 11, "groups": 9, "dim": 24},
    "more captions": {"videos": 3, "captions": 40, "groups": 5},
    "chunks": {"videos": 19, "groups": 16, "workspace_bytes": 1, "counts": (2, 1, 0)},
    "full width": {"videos": 3, "dim": 256},
}


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
@pytest.mark.parametrize("name", WHOLE)
def test_loss_and_gradients_against_float64(failures_at, poisoned_memory, whole_op, name):
    """Scores and loss with the gradients of groups, nouns, beta and scale."""
    assert failures_at(**WHOLE[name]) == []
    assert whole_op


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
@pytest.mark.parametrize("strip", [2, 7])
def test_strips_and_chunks_against_float64(failures_at, whole_op, monkeypatch, strip):
    monkeypatch.setattr(backward, "strip_tiles", lambda *_: strip)
    a_video = 16 * (21 * 2 * 2 + 32 * 4)
    sizes = {"groups": 16, "videos": 21, "dim": 32, "workspace_bytes": 16 * a_video}
    assert failures_at(**sizes) == []
    assert len(whole_op) == 4


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
)
def test_gradients_that_are_not_needed(whole_op, needs):
    """The same bits as with all gradients; beta's alone has no float16 and no common factor."""
    groups, nouns = (torch.randn(5, n, 32).half() / 6 for n in (8, 2))
    layout = layout_of(groups, nouns)
    prepared = backward.ForwardBuffers(groups.view(-1, 32), nouns.view(-1, 32), torch.rand(5, 2))

    def run(*needs):
        return backward.backward(
            prepared,
            torch.tensor(9.0),
            layout,
            backward.Needs(*needs),
            torch.float16,
            torch.linspace(-1, 1, 25).view(5, 5),
            1 << 20,
        )

    for needed, found, wanted in zip(needs, run(*needs), run(True, True, True)):
        assert found.numel() == (wanted.numel() if needed else 0)
        if needed:
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def recorded(groups=32, dim=256, dtype=torch.float16, offset=0, choice="gluon"):
    """Names of the kernels that the backward pass of 64 pairs launches."""
    memory = torch.empty(64 * groups * dim + offset, dtype=dtype)[offset:]
    groups = memory.view(64, groups, dim)
    layout = layout_of(groups, groups[:, :2])
    nouns = torch.empty(64 * 2, layout.padded_dim, dtype=layout.dtype)
    upstream = torch.empty(64, 64)
    prepared = backward.ForwardBuffers(groups.view(-1, dim), nouns, torch.empty(64, 2))
    with use_backend(choice), record_launches() as launches:
        needs = backward.Needs(True, True, True)
        backward.backward(prepared, upstream[0, 0], layout, needs, dtype, upstream, 1 << 30)
    return [one.kernel.__name__ for one in launches]


@pytest.mark.parametrize("groups", [8, 32])
def test_the_choice_replaces_the_gradient_only(groups):
    plain, gluon = recorded(groups, choice="fused"), recorded(groups)
    assert "resident_gradient_kernel" in plain
    assert gluon == [
        "gluon_gradient_kernel" if name == "resident_gradient_kernel" else name for name in plain
    ]
    assert recorded(groups, choice="auto") == plain


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"dim": 320}, "the tile of nouns is resident for D up to 256, got 320"),
        ({"dtype": torch.float32}, "float32 products take three steps of tf32"),
        ({"offset": 4}, "the group tokens do not start at a multiple of 16 bytes"),
    ],
)
def test_what_gluon_does_not_take_stays_plain_and_is_said_once(monkeypatch, caplog, call, reason):
    monkeypatch.setattr(choice_of_path, "_said", set())
    with caplog.at_level(logging.INFO):
        plain = recorded(**call, choice="fused")
        assert caplog.messages == []
        assert recorded(**call) == recorded(**call) == plain
    assert caplog.messages == [f"grounding: plain kernels instead of Gluon, because {reason}"]


def test_other_gpus_stay_plain():
    with assume_traits(A100):
        assert "gluon_gradient_kernel" not in recorded()
    with assume_traits(H200):
        assert "gluon_gradient_kernel" in recorded()
