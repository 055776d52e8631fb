"""The compiled Gluon kernel: against float64, the plain kernel's index, a CUDA graph, repeated.

A file of its own, because `make gpu` runs each file in a process: a kernel that hangs takes no
results of the plain kernels with it.
"""

import pytest
import torch

from svilm_fast.kernels import grouping, ops
from svilm_fast.kernels.backend import use_backend
from svilm_fast.kernels.launch import compiled_kernels

pytestmark = pytest.mark.gpu


@pytest.fixture
def gluon():
    """Calls take the Gluon kernel; the test fails if none was started."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the Gluon kernels are for compute capability (9, 0)")
    with use_backend("gluon"), compiled_kernels() as kernels:
        yield
    assert "gluon_grouping_forward_kernel" in {kernel.metadata.name for kernel in kernels}


# Several tiles in one program: the plan of small inputs would give each tile its own.
WHOLE = (("splits", 1), ("chunk", 1024))
SHAPES = [
    (6, 1000, 768, 32), (3, 1000, 1024, 16), (2, 1, 64, 32), (2, 63, 80, 17), (3, 64, 48, 16),
    (2, 65, 16, 1), (1, 385, 208, 20),
]  # fmt: skip


# Every shape, mode and dtype is compiled anew, so the tests take pairs of them.
@pytest.mark.parametrize(("mode", "dtype"), [("gumbel", torch.bfloat16), ("hard", torch.float16)])
@pytest.mark.parametrize(
    ("shape", "plan"), [*((shape, WHOLE) for shape in SHAPES), (SHAPES[0], ()), (SHAPES[-1], ())]
)
def test_against_float64(check_grouping, gluon, shape, plan, mode, dtype):
    batch, length, width, groups = shape
    check_grouping(
        check_grouping.Regime(
            mode=mode, dtype=dtype, batch=batch, length=length, width=width, groups=groups,
            dropped=mode == "gumbel", bias="sample" if length > 64 else None, seed=1, plan=plan,
        )
    )  # fmt: skip


def test_two_splits(check_grouping, gluon):
    cut = (("splits", 2), ("chunk", 256))
    check_grouping(
        check_grouping.Regime(
            dtype=torch.bfloat16, length=500, width=768, groups=32, seed=2, plan=cut
        )
    )


def call(case, dtype=torch.bfloat16):
    op = ops()["grouping"]
    arguments = op.make_inputs(op.cases[case], dtype, "cuda", 0)
    return {
        name: value.detach() if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize("case", ["target", "few_clips", "ragged"])
def test_the_plain_kernel_agrees_and_runs_repeat(gluon, case):
    arguments = call(case)
    first = grouping(**arguments)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(grouping(**arguments), first))
    with use_backend("fused"):
        plain = grouping(**arguments)
    # The products may round differently, which turns a few near-ties.
    other = (first.index != plain.index).sum()
    assert other <= 1e-5 * first.index.numel()
    assert (first.counts - plain.counts).abs().sum() <= 2 * other
    difference = (first.pooled.float() - plain.pooled.float()).norm()
    assert difference <= 2.0**-7 * plain.pooled.float().norm()


def test_equal_groups_and_the_first_of_them(gluon):
    arguments = call("ragged") | {"mode": "hard", "seeds": None, "group_bias": None}
    arguments["queries"].zero_()
    out = grouping(**arguments)
    assert (out.index == 0).all()
    assert (out.counts[:, 0] == arguments["tokens"].shape[1]).all()


def test_infinite_tokens_stay_in_their_sample(gluon):
    """The last tile of sample 0 ends within a tile: what follows is sample 1's."""
    arguments = call("ragged")
    before = grouping(**arguments)
    arguments["tokens"][1:] = torch.inf
    after = grouping(**arguments)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(before, after))


def test_a_graph_replays_with_new_data(gluon, capture):
    arguments = call("ragged")

    def step():
        return tuple(grouping(**arguments))

    first, captured, graph = capture(step)
    arguments["tokens"].copy_(arguments["tokens"].flip(1))
    graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(captured[2], first[2])
    assert all(torch.equal(a, b) for a, b in zip(captured, step()))
