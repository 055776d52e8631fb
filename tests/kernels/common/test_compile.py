"""`torch.compile(fullgraph=True)`: one graph for all batch sizes, and one tensor given twice."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import normalize

from svilm_fast.kernels import (
    grounding_loss,
    grounding_scores,
    grouping,
    infonce,
    infonce_partials,
    matrix_infonce,
    segment_pool,
    temporal_bce,
)
from svilm_fast.kernels.backend import interpreted

pytestmark = pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")

PATHS = ("reference", "fused")


def some_slow(ops, fast):
    """Tracing costs seconds, and the ops share its means."""
    marks = {op: () if op in fast else pytest.mark.slow for op in ops}
    return [pytest.param(op, marks=marks[op]) for op in ops]


SIZES = (5, 6, 7, 8, 9, 10, 11, 12, 40, 100)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def rows(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(shape, generator=generator), dim=-1).requires_grad_()


def number(value):
    return torch.tensor(value, requires_grad=True)


def graphs(function, calls, dynamic=None):
    """Graphs that the calls took; each must equal eager, forward and backward."""
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for inputs in calls:
        wanted = [value for value in inputs if value.requires_grad]
        found, expected = compiled(*inputs), function(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        for one, other in zip(
            torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted)
        ):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    return counters["stats"]["unique_graphs"]


# By op: the function of its inputs, and the inputs of a batch of n.
BY_SIZE = {
    "infonce": (infonce, lambda n: (rows(n, 16), rows(n, 16, seed=1), number(5.0))),
    "infonce_partials": (
        lambda v, t, s, **k: torch.cat(infonce_partials(v, t, s, diagonal_offset=1, **k)).sum(),
        lambda n: (rows(n, 16), rows(n + 3, 16, seed=1), number(5.0)),
    ),
    "grounding_scores": (
        lambda g, n, m, b, **k: grounding_scores(g, n, m, b, **k).square().sum(),
        lambda n: (rows(n, 3, 16), rows(n, 2, 16), torch.ones(n, 2) > 0, number(5.0)),
    ),
    "grounding_loss": (
        grounding_loss,
        lambda n: (rows(n, 3, 16), rows(n, 2, 16), torch.ones(n, 2) > 0, number(5.0), number(9.0)),
    ),
    "matrix_infonce": (matrix_infonce, lambda n: (rows(n, n), number(5.0))),
    "grouping": (
        lambda q, t, **k: grouping(q, t, mode="hard", **k).pooled.square().sum(),
        lambda n: (rows(n, 3, 16), rows(n, 5, 16, seed=1)),
    ),
    "temporal_bce": (
        temporal_bce,
        lambda n: (rows(n, 4, 16), (torch.arange(4) % 2 == 0).repeat(n, 1)),
    ),
    "segment_pool": (
        lambda t, i, **k: segment_pool(t, i, 2, **k)[0].square().sum(),
        lambda n: (rows(n, 4, 16), torch.arange(4).repeat(n, 1) // 2),
    ),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("op", some_slow(BY_SIZE, ("infonce",)))
def test_all_batch_sizes_take_two_graphs(op, path):
    """The first of its own, as PyTorch does, then one with a size."""
    function, inputs = BY_SIZE[op]
    assert graphs(partial(function, backend=path), map(inputs, SIZES)) == 2


@pytest.mark.parametrize("path", PATHS)
def test_dynamic_sizes_take_one_graph(path):
    function, inputs = BY_SIZE["infonce"]
    assert graphs(partial(function, backend=path), map(inputs, (5, 6, 7)), dynamic=True) == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "mode, lists", [("exclude", "one"), ("exclude", "the same twice"), ("share", "two")]
)
def test_ids(path, mode, lists):
    def loss(videos, texts, scale, ids, others):
        pair_ids = {"one": ids, "the same twice": (ids, ids), "two": (ids, others)}[lists]
        return infonce(videos, texts, scale, pair_ids=pair_ids, pair_mode=mode, backend=path)

    calls = [
        (rows(n, 16), rows(n, 16, seed=1), number(5.0), torch.arange(n) // 2, torch.arange(n) // 3)
        for n in (5, 6, 7)
    ]
    assert graphs(loss, calls) == 2


MASK = torch.tensor([[True, False, True, False]] * 3)
# Of features [3, 4, 16] and a factor.
TWICE = {
    "infonce": lambda x, s, **k: infonce(x.flatten(0, 1), x.flatten(0, 1), s, **k),
    "infonce of one view": lambda x, s, **k: (lambda v: infonce(v, v, s, **k))(x[:, 0]),
    "infonce_partials": lambda x, s, **k: sum(
        part.sum() for part in (lambda v: infonce_partials(v, v, s, **k))(x[:, 0])
    ),
    "grounding_scores": lambda x, s, **k: grounding_scores(x, x, MASK, s, **k).square().sum(),
    "grounding_loss": lambda x, s, **k: grounding_loss(x, x, MASK, s, s, **k),
    "grouping": lambda x, s, **k: (s * grouping(x, x, mode="hard", **k).pooled).square().sum(),
    "temporal_bce": lambda x, s, **k: s * temporal_bce(x, MASK, segment_mask=MASK, **k) + x.sum(),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("op", some_slow(TWICE, ("infonce of one view",)))
def test_one_tensor_given_twice(op, path):
    assert graphs(partial(TWICE[op], backend=path), [(rows(3, 4, 16), number(5.0))]) == 1


@pytest.mark.parametrize("path", PATHS)
def test_inputs_that_are_one_tensor(path):
    features = rows(6, 16)

    def loss(videos, texts, scale):
        return infonce(videos, texts, scale, backend=path)

    assert graphs(loss, [(features, features, number(5.0))]) == 1
