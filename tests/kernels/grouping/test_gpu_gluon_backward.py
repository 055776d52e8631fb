"""The compiled Gluon kernel of backward: against float64, the plain kernel, a CUDA graph, repeated.

A file of its own, because `make gpu` runs each file in a process: a kernel that hangs takes no
results of the other kernels with it.
"""

import pytest
import torch

from svilm_fast.kernels import grouping, ops
from svilm_fast.kernels.backend import use_backend
from svilm_fast.kernels.launch import compiled_kernels

pytestmark = pytest.mark.gpu


@pytest.fixture
def gluon():
    """Backward takes the Gluon kernel; the test fails if none was started."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the Gluon kernels are for compute capability (9, 0)")
    with use_backend("gluon"), compiled_kernels() as kernels:
        yield
    assert "gluon_grouping_backward_kernel" in {kernel.metadata.name for kernel in kernels}


# Several tiles in one program: the plan of small inputs would give each tile its own.
WHOLE = (("splits", 1), ("chunk", 1024))
SHAPES = [
    (6, 1000, 768, 32), (3, 1000, 1024, 16), (2, 1, 64, 32), (2, 63, 80, 17), (3, 64, 48, 16),
    (2, 65, 16, 1), (1, 385, 208, 20),
]  # fmt: skip


# Every shape, mode and dtype is compiled anew, so the tests take samples of them.
@pytest.mark.parametrize(
    ("shape", "plan"), [*((shape, WHOLE) for shape in SHAPES), (SHAPES[0], ()), (SHAPES[-1], ())]
)
def test_against_float64(check_grouping, gluon, shape, plan):
    batch, length, width, groups = shape
    odd = length % 2 == 1
    check_grouping(
        check_grouping.Regime(
            mode="hard" if odd else "gumbel", dtype=torch.float16 if odd else torch.bfloat16,
            batch=batch, length=length, width=width, groups=groups, dropped=not odd,
            temperature=0.3 if odd else 1.0, bias="sample" if length > 64 else None, seed=1,
            plan=plan,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"plan": (("splits", 2), ("chunk", 256))},
        {"mode": "soft", "temperature": 3.0, "plan": WHOLE},
        {"upstream": 1e-6, "dtype": torch.float16, "plan": WHOLE},
    ],
    ids=["splits", "soft", "small gradient"],
)
def test_other_calls(check_grouping, gluon, change):
    regime = {"dtype": torch.bfloat16, "length": 500, "width": 768, "groups": 32, "seed": 2}
    check_grouping(check_grouping.Regime(**(regime | change)))


def call(case):
    """Arguments of a case, and upstream gradients of pooled and counts."""
    op = ops()["grouping"]
    arguments = op.make_inputs(op.cases[case], torch.bfloat16, "cuda", 0)
    generator = torch.Generator("cuda").manual_seed(1)
    shape = arguments["queries"].shape
    d_pooled = torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
    return arguments, (d_pooled, torch.randn(shape[:2], generator=generator, device="cuda"))


NAMES = ("queries", "tokens", "group_bias")


def gradients(arguments, upstream, out=None):
    out = grouping(**arguments) if out is None else out
    leaves = [arguments[name] for name in NAMES]
    return torch.autograd.grad((out.pooled, out.counts), leaves, upstream, retain_graph=True)


@pytest.mark.parametrize("case", ["target", "few_clips", "ragged"])
def test_the_plain_kernel_agrees_and_runs_repeat(gluon, case):
    arguments, upstream = call(case)
    with use_backend("fused"):
        # Both get the same index.
        out = grouping(**arguments)
        plain = gradients(arguments, upstream, out)
    first = gradients(arguments, upstream, out)
    for _ in range(20):
        again = gradients(arguments, upstream, out)
        assert all(torch.equal(a, b) for a, b in zip(again, first))
    for name, one, other in zip(NAMES, first, plain):
        difference = (one.float() - other.float()).norm()
        assert difference <= 2.0**-7 * other.float().norm(), name


def test_infinite_tokens_stay_in_their_sample(gluon):
    """The last tile of sample 0 ends within a tile: what follows is sample 1's."""
    arguments, upstream = call("ragged")
    before = gradients(arguments, upstream)
    with torch.no_grad():
        arguments["tokens"][1:] = torch.inf
    after = gradients(arguments, upstream)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(before, after))


def test_a_graph_replays_with_new_data(gluon, capture):
    arguments, upstream = call("ragged")

    def step():
        return gradients(arguments, upstream)

    first, captured, graph = capture(step)
    with torch.no_grad():
        arguments["tokens"].copy_(arguments["tokens"].flip(1))
    graph.replay()
    torch.cuda.synchronize()
    assert not torch.equal(captured[1], first[1])
    assert all(torch.equal(a, b) for a, b in zip(captured, step()))
