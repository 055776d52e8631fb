"""The Gluon gradient in its interpreter: under many schedules, and the op's gradients with it."""

import itertools
from dataclasses import replace

import pytest
import torch

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.device import H200
from svilm_fast.kernels.infonce import infonce_partials
from svilm_fast.kernels.infonce.fused import backward, gluon_gradient
from svilm_fast.kernels.launch import Launch
from tests.bars import SEED_OFFSET, within
from tests.kernels.gluon_interpreter import interpret
from tests.kernels.infonce.gluon_gradient_blocks import BLOCKS, MAIN


@pytest.mark.parametrize("name", BLOCKS)
def test_gradient_of_ragged_blocks(check_gradient, name):
    for seed in range(3):
        check_gradient(BLOCKS[name], seed, stages=2 + seed)


# Three steps of depth: with stages of more than one product, the texts need waits of their own.
@pytest.mark.parametrize("stages", [2, 3, 5, 6, 8])
def test_two_hundred_schedules(check_gradient, stages):
    for seed in range(40):
        check_gradient(MAIN, seed, stages=stages)


def test_the_groups_take_turns(check_gradient):
    for seed in range(5):
        for log in check_gradient(MAIN, seed, stages=5):
            products = [log[at : at + 3] for at in range(0, len(log), 3)]
            groups = [{partition for partition, _ in product} for product in products]
            assert all(len(one) == 1 for one in groups)
            assert all(one != other for one, other in itertools.pairwise(groups))


def test_small_chunks_keep_the_plain_kernel():
    videos, texts = (torch.empty(4096, 256, device="meta") for _ in range(2))
    # 132 SMs, 32 tiles of texts: four products each are 16.5 products of 64 rows per tile.
    assert not gluon_gradient.fills_programs(videos, texts, 16 * 64)
    assert gluon_gradient.fills_programs(videos, texts, 16 * 64 + 1)


needs_interpreter = pytest.mark.skipif(
    not interpreted(), reason="runs the other kernels through the interpreter"
)


@pytest.fixture
def whole_op(monkeypatch):
    """Lets backward on the CPU take the Gluon kernel in its interpreter; counts its launches."""
    launches = []

    def run(kernel, grid, *args, **meta):
        launches.append(grid)
        interpret(Launch(kernel, grid, args, meta), len(launches) + SEED_OFFSET)

    monkeypatch.setattr(gluon_gradient, "launch", run)
    monkeypatch.setattr(gluon_gradient, "traits", lambda _: replace(H200, sm_count=2))
    monkeypatch.setattr(gluon_gradient, "LEAST_PRODUCTS", 1)
    monkeypatch.setattr(backward, "gluon_wanted", lambda _: True)
    return launches


@needs_interpreter
@pytest.mark.parametrize(
    ("name", "batch", "dim", "dtype"),
    [
        ("random", 300, 64, torch.float16),
        ("confident", 140, 80, torch.bfloat16),
        ("sharper", 140, 64, torch.float16),
        ("opposite", 140, 64, torch.float16),
    ],
)
def test_gradients_against_float64(check, regime, whole_op, name, batch, dim, dtype):
    check(*regime(name, batch, dim, dtype))
    assert whole_op == [(2,)]


@needs_interpreter
def test_chunks_of_a_rectangle_against_float64(check, rows, whole_op):
    videos, texts = rows(300, 64, 0, torch.float16), rows(200, 64, 1, torch.float16)
    options = {"diagonal_offset": -60, "workspace_bytes": 1}
    check(videos, texts, 14.0, options=options, naive={"offset": -60})
    assert len(whole_op) == 3


@needs_interpreter
@pytest.mark.parametrize("scale", [14.0, 1000.0])
def test_upstream_of_partial_sums_against_float64(rows, whole_op, scale):
    results = []
    for kind in (torch.float16, torch.float64):
        leaves = [rows(140, 64, seed, torch.float16).to(kind) for seed in (0, 1)]
        leaves.append(torch.tensor(scale, dtype=torch.promote_types(kind, torch.float32)))
        for leaf in leaves:
            leaf.requires_grad_()
        path = "fused" if kind == torch.float16 else "reference"
        sums = infonce_partials(*leaves, backend=path)
        upstream = [torch.linspace(-1, 1, len(part)).to(part.dtype) for part in sums]
        results.append(torch.autograd.grad(list(sums), leaves, upstream))
    assert whole_op == [(2,)]
    for found, expected in zip(results[0][:2], results[1][:2]):
        error = (found.double() - expected).norm()
        within(error, (2.0**-10 + 2.0**-22 * scale) * expected.norm(), "gradient")
