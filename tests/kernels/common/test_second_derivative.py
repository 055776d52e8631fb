"""A second derivative is correct or raises an error that names the op."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

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

PASTED = torch.tensor([[True, False, True], [False, True, True]])
NOUNS = torch.tensor([[True, True], [True, False], [False, False]])
SEGMENTS = torch.tensor([0, 0, 1, 2])


def unit(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


# By op: the function, its differentiable inputs, and the name in the error of each path that
# refuses; a path without one computes the value.
OPS = {
    "infonce": (
        lambda *a, **k: infonce(*a, **k),
        (unit(3, 16), unit(4, 16), number(3.0)),
        {"fused": "InfoNCELoss", "reference": "InfoNCEWhole"},
    ),
    "infonce_partials": (
        lambda *a, **k: torch.cat(infonce_partials(*a, **k)),
        (unit(3, 16), unit(4, 16), number(3.0)),
        {"fused": "InfoNCEPartialSums", "reference": "InfoNCEPartials"},
    ),
    "grounding_scores": (
        lambda g, n, b, **k: grounding_scores(g, n, NOUNS, b, **k),
        (unit(3, 2, 16), unit(3, 2, 16), number(4.0)),
        {"fused": "GroundingScores"},
    ),
    "grounding_scores in chunks": (
        lambda g, n, b, **k: grounding_scores(g, n, NOUNS, b, workspace_bytes=16, **k),
        (unit(3, 2, 16), unit(3, 2, 16), number(4.0)),
        {"fused": "GroundingScores"},
    ),
    "matrix_infonce": (
        lambda s, scale, **k: matrix_infonce(s, scale, valid=NOUNS.any(1), **k),
        (unit(3, 3), number(4.0)),
        {"fused": "MatrixInfoNCE"},
    ),
    "grounding_loss": (
        lambda g, n, b, s, **k: grounding_loss(g, n, NOUNS, b, s, **k),
        (unit(3, 2, 16), unit(3, 2, 16), number(4.0), number(3.0)),
        {"fused": "GroundingLoss"},
    ),
    "grouping": (
        lambda q, t, b, **k: grouping(q, t, b, mode="soft", **k).pooled,
        (unit(2, 2, 16), unit(2, 4, 16), unit(2, 2)),
        {"fused": "Grouping"},
    ),
    "temporal_bce": (
        lambda s, **k: temporal_bce(s, PASTED, temperature=1.0, **k),
        (unit(2, 3, 16),),
        {"fused": "TemporalBCE"},
    ),
    "segment_pool": (
        lambda t, **k: segment_pool(t, SEGMENTS, 3, **k)[0],
        (unit(2, 4, 16),),
        {"fused": "SegmentPool"},
    ),
}
PATHS = [(op, path) for op in OPS for path in ("fused", "reference")]
REFUSED = [(op, path) for op, path in PATHS if path in OPS[op][2]]
COMPUTED = [pair for pair in PATHS if pair not in REFUSED]


def leaves(op, dtype):
    return [value.detach().clone().to(dtype).requires_grad_() for value in OPS[op][1]]


@pytest.mark.parametrize("op, path", REFUSED)
@pytest.mark.parametrize("upstream", ["a constant", "a graph"])
def test_refuses_by_name(op, path, upstream):
    function, _, names = OPS[op]
    inputs = leaves(op, torch.float32)
    total = function(*inputs, backend=path).sum()
    total = total.square() if upstream == "a graph" else total
    gradients = torch.autograd.grad(total, inputs, create_graph=True)
    if op == "segment_pool" and upstream == "a constant":
        # Linear: the gradient is a constant, so no path leads from it to the inputs.
        inputs = None
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=f"{names[path]}: the op has no second derivative"):
            gradient.square().sum().backward(inputs=inputs, retain_graph=True)


@pytest.mark.parametrize("op, path", REFUSED)
def test_refuses_where_other_terms_lead_to_the_same_inputs(op, path):
    function, _, names = OPS[op]
    inputs = leaves(op, torch.float32)
    total = function(*inputs, backend=path).square().sum()
    gradients = torch.autograd.grad(total, inputs, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in gradients)
    others = sum(leaf.square().sum() for leaf in inputs)
    for wanted in inputs:
        with pytest.raises(RuntimeError, match=f"{names[path]}: the op has no second derivative"):
            torch.autograd.grad(penalty + others, wanted, retain_graph=True)
    with pytest.raises(RuntimeError, match=f"{names[path]}: the op has no second derivative"):
        (penalty + others).backward()


@pytest.mark.parametrize("op, path", COMPUTED)
def test_computes_the_value(op, path):
    function = OPS[op][0]
    inputs = leaves(op, torch.float64)
    outputs = function(*inputs, backend=path)
    assert torch.autograd.gradgradcheck(
        lambda *a: function(*a, backend=path), inputs, torch.ones_like(outputs).requires_grad_()
    )


@pytest.mark.parametrize("op, path", REFUSED)
def test_a_graph_of_the_gradient_changes_no_bit_of_it(op, path):
    """As gradient penalties of other terms, and DeepSpeed's own `create_graph`, ask for it."""
    function = OPS[op][0]
    inputs = leaves(op, torch.float32)
    total = function(*inputs, backend=path).sum()
    with_graph = torch.autograd.grad(total, inputs, create_graph=True)
    plain = torch.autograd.grad(total, inputs)
    assert all(torch.equal(one, other) for one, other in zip(with_graph, plain))
    assert not any(gradient.requires_grad for gradient in plain)


@pytest.mark.parametrize("op, path", REFUSED)
def test_activation_checkpointing_finds_the_same_gradients(op, path):
    function = OPS[op][0]
    gradients = []
    for recomputed in (False, True):
        inputs = leaves(op, torch.float32)
        call = (lambda *a: function(*a, backend=path).sum(), *inputs)
        total = checkpoint(*call, use_reentrant=False) if recomputed else call[0](*inputs)
        total.backward()
        gradients.append([leaf.grad for leaf in inputs])
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


@pytest.mark.parametrize("path", ["fused", "reference"])
def test_a_compiled_op_refuses_too(path):
    inputs = leaves("infonce", torch.float32)
    compiled = torch.compile(
        lambda *a: infonce(*a, backend=path), fullgraph=True, backend="aot_eager"
    )
    gradient = torch.autograd.grad(compiled(*inputs), inputs[0], create_graph=True)[0]
    expected = torch.autograd.grad(infonce(*inputs, backend=path), inputs[0])[0]
    assert torch.equal(gradient, expected)
    with pytest.raises(RuntimeError, match=r"second derivative|double backward"):
        torch.autograd.grad(gradient.square().sum(), inputs)
