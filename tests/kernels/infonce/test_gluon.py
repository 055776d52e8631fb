"""The Gluon kernel in its interpreter: its sums under many schedules, and the op around it."""

import itertools
import logging

import pytest
import torch

from svilm_fast.kernels import backend
from svilm_fast.kernels.backend import interpreted, use_backend
from svilm_fast.kernels.device import A100, assume_traits
from svilm_fast.kernels.infonce.cases import VARIANTS
from svilm_fast.kernels.infonce.fused import forward, gluon_sums, layout
from svilm_fast.kernels.launch import Launch, record_launches
from tests.bars import SEED_OFFSET
from tests.kernels.gluon_interpreter import interpret
from tests.kernels.infonce.gluon_blocks import BLOCKS, MAIN


@pytest.mark.parametrize("name", BLOCKS)
def test_sums_of_ragged_blocks(check_sums, name):
    for seed in range(3):
        check_sums(BLOCKS[name], seed)


@pytest.mark.parametrize("part", range(4))
def test_two_hundred_schedules(check_sums, part):
    for seed in range(50 * part, 50 * part + 50):
        check_sums(MAIN, seed, stages=(2, 3, 4, 5)[part])


def test_the_groups_take_turns(check_sums):
    for seed in range(5):
        (log,) = check_sums(MAIN, seed, stages=5)
        groups = [partition for partition, _ in log]
        steps = [groups[at : at + 3] for at in range(0, len(groups), 3)]
        assert [len(set(three)) for three in steps] == [1] * 5
        assert all(before[0] != after[0] for before, after in itertools.pairwise(steps))


@pytest.fixture
def whole_op(monkeypatch):
    """Lets calls on the CPU take the Gluon kernel in its interpreter; counts its launches."""
    launches = []

    def run(kernel, grid, *args, **meta):
        launches.append(grid)
        interpret(Launch(kernel, grid, args, meta), len(launches) + SEED_OFFSET)

    monkeypatch.setattr(gluon_sums, "launch", run)
    monkeypatch.setattr(forward, "gluon_wanted", lambda _: True)
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)
    return launches


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
@pytest.mark.parametrize(
    ("batch", "dim", "dtype"),
    [(300, 64, torch.float16), (140, 320, torch.bfloat16), (390, 80, torch.float16)],
)
def test_loss_and_gradients_against_float64(check, regime, whole_op, batch, dim, dtype):
    check(*regime("random", batch, dim, dtype))
    # The plain kernel takes the ragged column tile.
    assert whole_op == [(batch // 128 * -(-batch // 128),)]


@pytest.mark.skipif(not interpreted(), reason="runs the other kernels through the interpreter")
def test_chunks_of_rows_against_float64(check, regime, whole_op, monkeypatch):
    monkeypatch.setattr(layout, "ROW_SUM_BYTES", 1)
    monkeypatch.setattr(layout, "MAX_STRIP_TILES", 1)
    check(*regime("half", 300, 64, torch.float16))
    assert len(whole_op) == 3


def recorded(label, choice):
    """Names of the kernels that a declared variant launches."""
    variant = next(variant for variant in VARIANTS if variant.label == label)
    with use_backend(choice), record_launches() as launches:
        variant.run()
    return [(one.kernel.__name__, one.meta.get("TILES")) for one in launches]


def test_the_choice_replaces_the_launches_beside_the_diagonal_and_the_gradient_only():
    label = "bf16 D512 B65536"
    plain, gluon = recorded(label, "fused"), recorded(label, "gluon")
    replaced = {("sums_kernel", "beside"), ("dots_gradient_kernel", None)}
    assert {one for one in plain if one not in gluon} == replaced
    added = {("gluon_sums_kernel", None), ("gluon_gradient_kernel", None)}
    assert {one for one in gluon if one not in plain} == added
    assert len(plain) == len(gluon)
    assert recorded(label, "auto") == plain


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("bf16 D512 exclude", "pair ids are not supported"),
        ("bf16 D512 share", "pair ids are not supported"),
        ("fp32 D256 B1024", "fp32 products take three steps of tf32"),
    ],
)
def test_what_gluon_does_not_take_stays_plain_and_is_said_once(monkeypatch, caplog, label, reason):
    monkeypatch.setattr(backend, "_said", set())
    with caplog.at_level(logging.INFO):
        plain = recorded(label, "fused")
        assert caplog.messages == []
        assert recorded(label, "gluon") == recorded(label, "gluon") == plain
    assert caplog.messages == [f"infonce: plain kernels instead of Gluon, because {reason}"]


@pytest.mark.parametrize(("dim", "taken"), [(48, False), (64, True), (512, True), (768, False)])
def test_widths_that_gluon_takes(dim, taken):
    videos, texts = (torch.empty(8, dim, dtype=torch.bfloat16, device="meta") for _ in range(2))
    block = forward.CallTensors(videos, texts, torch.empty((), device="meta"), None, None, None, 0)
    reason = forward.gluon_obstacle(block)
    assert reason is None if taken else f"D from 64 to 512, got {dim}" in reason


def test_other_gpus_stay_plain():
    with assume_traits(A100):
        assert "gluon_sums_kernel" not in {name for name, _ in recorded("bf16 D512 B8192", "gluon")}
