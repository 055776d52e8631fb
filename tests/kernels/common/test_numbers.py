"""All ops accept and reject the same kinds of numbers and sizes."""

from fractions import Fraction

import numpy as np
import pytest
import torch
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
from svilm_fast.kernels.grounding import distributed_grounding_loss
from svilm_fast.kernels.infonce import distributed_infonce


def unit(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return normalize(torch.randn(shape, generator=generator), dim=-1)


V, T = unit(4, 8), unit(4, 8)
G, N, MASK = unit(4, 2, 16), unit(4, 3, 16), torch.ones(4, 3, dtype=torch.bool)
SCALED = {
    "infonce": lambda s, **k: infonce(V, T, s, **k),
    "infonce_partials": lambda s, **k: torch.cat(infonce_partials(V, T, s, **k)),
    "distributed_infonce": lambda s, **k: distributed_infonce(V, T, s, **k),
    "grounding_scores": lambda s, **k: grounding_scores(G, N, MASK, s, **k),
    "grounding_loss's beta": lambda s, **k: grounding_loss(G, N, MASK, s, 2.0, **k),
    "grounding_loss's scale": lambda s, **k: grounding_loss(G, N, MASK, 2.0, s, **k),
    "distributed_grounding_loss": lambda s, **k: distributed_grounding_loss(G, N, MASK, s, s, **k),
}
MATRIX = {"matrix_infonce": lambda s: matrix_infonce(V @ T.T, s)}
FUSED_HERE = "fused" if interpreted() else "reference"
FUSED = pytest.param(
    "fused", marks=pytest.mark.skipif(not interpreted(), reason="runs kernels in the interpreter")
)
# Collective ops give every problem as one kind of error.
REFUSAL = (TypeError, ValueError)


@pytest.mark.parametrize("op", SCALED | MATRIX)
@pytest.mark.parametrize("value", [3, np.float32(3), np.float64(3), np.int64(3)])
def test_numbers_of_every_kind_are_numbers(op, value):
    function = (SCALED | MATRIX)[op]
    assert torch.equal(function(value), function(3.0))


@pytest.mark.parametrize("op", SCALED | MATRIX)
def test_an_integer_beyond_every_float_is_refused(op):
    with pytest.raises(ValueError, match="must be a number below 1e308"):
        (SCALED | MATRIX)[op](10**400)


@pytest.mark.parametrize("value", [None, 3.0, [[1.0]], np.ones((4, 8))])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: infonce(x, T, 1.0),
        lambda x: infonce(V, x, 1.0),
        lambda x: infonce_partials(x, T, 1.0),
        lambda x: distributed_infonce(V, x, 1.0),
        lambda x: grounding_scores(x, N, MASK, 1.0),
        lambda x: grounding_loss(G, x, MASK, 1.0, 1.0),
        lambda x: distributed_grounding_loss(G, N, x, 1.0, 1.0),
        lambda x: matrix_infonce(x, 1.0),
        lambda x: grouping(x, N, mode="hard"),
        lambda x: grouping(G, x, mode="hard"),
        lambda x: segment_pool(x, torch.zeros(4, 3, dtype=torch.int64), 2),
    ],
)
def test_what_is_no_tensor_is_refused(call, value):
    with pytest.raises(REFUSAL, match="must be a tensor, got"):
        call(value)


def test_a_single_list_of_ids_comes_without_a_tuple():
    with pytest.raises(ValueError, match="pair_ids must be ids or two lists of ids"):
        infonce(V, T, 1.0, pair_ids=(torch.arange(4),))


@pytest.mark.parametrize("op", SCALED | MATRIX)
@pytest.mark.parametrize("value", [True, np.True_, "3", None, 3j, np.ones(1)])
def test_other_things_are_no_numbers(op, value):
    with pytest.raises(REFUSAL, match="must be a number or a 0-dim float tensor, got"):
        (SCALED | MATRIX)[op](value)


@pytest.mark.parametrize("op", SCALED)
@pytest.mark.parametrize("workspace", [0, -1, np.int64(-5)])
def test_workspaces_without_a_byte(op, workspace):
    with pytest.raises(ValueError, match="workspace_bytes must be positive, got"):
        SCALED[op](2.0, workspace_bytes=workspace)


@pytest.mark.parametrize("op", SCALED)
@pytest.mark.parametrize("workspace", [1.5, True, "1", torch.tensor(8)])
def test_workspaces_that_are_no_whole_number(op, workspace):
    with pytest.raises(REFUSAL, match="workspace_bytes must be a whole number, got"):
        SCALED[op](2.0, workspace_bytes=workspace)


@pytest.mark.parametrize("op", SCALED)
def test_workspaces_of_numpy(op):
    assert torch.equal(
        SCALED[op](2.0, workspace_bytes=np.int64(99)), SCALED[op](2.0, workspace_bytes=99)
    )


@pytest.mark.parametrize("op", ["infonce", "infonce_partials"])
def test_offsets(op):
    expected = SCALED[op](2.0, diagonal_offset=1)
    assert torch.equal(SCALED[op](2.0, diagonal_offset=np.int32(1)), expected)
    for offset in (1.0, True, "1", torch.tensor(1)):
        with pytest.raises(TypeError, match=f"{op}: diagonal_offset must be a whole number, got"):
            SCALED[op](2.0, diagonal_offset=offset)


INDEX, PASTED = torch.tensor([0, 0, 1]), torch.tensor([[True, False, True]] * 4)
DIVIDED = {
    "grouping's temperature": lambda x, **k: grouping(G, N, mode="soft", temperature=x, **k).pooled,
    "grouping's eps": lambda x, **k: grouping(G, N, mode="hard", eps=x, **k).pooled,
    "temporal_bce's temperature": lambda x, **k: temporal_bce(N, PASTED, temperature=x, **k),
}
PATHS = pytest.mark.parametrize("backend", ["reference", FUSED])


@PATHS
@pytest.mark.parametrize("op", DIVIDED)
@pytest.mark.parametrize("value", [2, np.float32(2), np.float64(2), np.int64(2), Fraction(2)])
def test_divisors_of_every_kind(op, value, backend):
    expected = DIVIDED[op](2.0, backend=backend)
    assert torch.equal(DIVIDED[op](value, backend=backend), expected)


@PATHS
@pytest.mark.parametrize("op", DIVIDED)
@pytest.mark.parametrize("value", [True, np.True_, "2", None, 2j, np.ones(1), torch.tensor(2.0)])
def test_divisors_that_are_no_numbers(op, value, backend):
    with pytest.raises(TypeError, match=f"{op.replace(chr(39) + 's', ':')} must be a number, got"):
        DIVIDED[op](value, backend=backend)


@PATHS
@pytest.mark.parametrize("op", DIVIDED)
@pytest.mark.parametrize("value", [0, -1.0, 1e-30, 1e30, float("inf"), float("nan"), 10**400])
def test_divisors_beyond_their_range(op, value, backend):
    with pytest.raises(ValueError, match=r"positive and within \[2\^-64, 2\^64\], got"):
        DIVIDED[op](value, backend=backend)


@PATHS
@pytest.mark.parametrize("op", DIVIDED)
@pytest.mark.parametrize("value", [2.0**-64, 2.0**64])
def test_divisors_at_the_ends_of_their_range(op, value, backend):
    assert DIVIDED[op](value, backend=backend).isfinite().all()


@PATHS
def test_numbers_of_segments(backend):
    expected = segment_pool(N, INDEX, 2, backend=backend)[0]
    assert torch.equal(segment_pool(N, INDEX, np.int32(2), backend=backend)[0], expected)
    for value in (2.0, True, np.True_, "2", None, torch.tensor(2)):
        with pytest.raises(TypeError, match="num_segments must be a whole number, got"):
            segment_pool(N, INDEX, value, backend=backend)


EIGHT_BITS = torch.float8_e4m3fn
OTHER_DTYPES = {
    "infonce": lambda kind: infonce(V.to(kind), T.to(kind), 1.0),
    "grounding_scores": lambda kind: grounding_scores(G.to(kind), N.to(kind), MASK, 1.0),
    "matrix_infonce": lambda kind: matrix_infonce((V @ T.T).to(kind), 1.0),
    "grouping": lambda kind: grouping(G, N.to(kind), mode="hard"),
    "grouping's queries": lambda kind: grouping(G.to(kind), N, mode="hard"),
    "grouping's bias": lambda kind: grouping(G, N, torch.ones(2).to(kind), mode="hard"),
    "temporal_bce": lambda kind: temporal_bce(N.to(kind), PASTED, backend=FUSED_HERE),
    "segment_pool": lambda kind: segment_pool(N.to(kind), INDEX, 2, backend=FUSED_HERE),
}


@pytest.mark.parametrize("op", OTHER_DTYPES)
@pytest.mark.parametrize("kind", [EIGHT_BITS, torch.int64, torch.complex64])
def test_dtypes_without_products(op, kind):
    with pytest.raises(REFUSAL, match=r"float|fp16") as error:
        OTHER_DTYPES[op](kind)
    assert str(kind) in str(error.value)


WIDTH_0 = {
    "infonce": lambda: infonce(V[:, :0], T[:, :0], 1.0),
    "infonce_partials": lambda: infonce_partials(V[:, :0], T[:, :0], 1.0),
    "grounding_scores": lambda: grounding_scores(G[..., :0], N[..., :0], MASK, 1.0),
    "grounding_loss": lambda: grounding_loss(G[..., :0], N[..., :0], MASK, 1.0, 1.0),
    "grouping": lambda: grouping(G[..., :0], N[..., :0], mode="hard"),
    "temporal_bce": lambda: temporal_bce(N[..., :0], MASK),
    "segment_pool": lambda: segment_pool(N[..., :0], torch.zeros(3, dtype=torch.int64), 2),
}


@pytest.mark.parametrize("op", WIDTH_0)
def test_rows_of_width_0(op):
    with pytest.raises(ValueError, match=r"(width above 0|empty input).*, got \[4,.* 0\]"):
        WIDTH_0[op]()
