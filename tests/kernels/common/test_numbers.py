"""Numbers and sizes are taken, or refused, alike by all ops."""

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
from svilm_fast.kernels.grounding import distributed_grounding_loss
from svilm_fast.kernels.infonce import distributed_infonce


def unit(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return normalize(torch.randn(shape, generator=generator), dim=-1)


V, T = unit(4, 8), unit(4, 8)
G, N, MASK = unit(4, 2, 8), unit(4, 3, 8), torch.ones(4, 3, dtype=torch.bool)
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
# Collective ops give every problem as one kind of error.
REFUSAL = (TypeError, ValueError)


@pytest.mark.parametrize("op", SCALED | MATRIX)
@pytest.mark.parametrize("value", [3, np.float32(3), np.float64(3), np.int64(3)])
def test_numbers_of_every_kind_are_numbers(op, value):
    function = (SCALED | MATRIX)[op]
    assert torch.equal(function(value), function(3.0))


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
