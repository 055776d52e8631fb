"""Tensors may start at any address that their dtype allows, whatever their storage's offset."""

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.kernels import (
    grounding_loss,
    grouping,
    infonce,
    infonce_partials,
    segment_pool,
    temporal_bce,
)
from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.infonce.fused.function import _aligned

pytestmark = pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")

PRESENT = torch.ones(4, 3, dtype=torch.bool)
PASTED = torch.tensor([[True, False, True]] * 4)
INDEX = torch.tensor([0, 0, 1])
SHAPES = {"rows": (4, 16), "other rows": (4, 16), "blocks": (4, 2, 16), "other blocks": (4, 3, 16)}
# Where a tensor starts: bytes that its address lies past a multiple of 16, and elements that it
# lies past the start of its storage.
STARTS = {
    "an odd address, no offset": (2, 0),
    "an even address, an odd offset": (14, 1),
    "an odd address, an even offset": (6, 8),
}
OPS = {
    "infonce": lambda v, t, g, n, **k: infonce(v, t, 3.0, **k),
    "infonce_partials": lambda v, t, g, n, **k: torch.cat(infonce_partials(v, t, 3.0, **k)),
    "grounding_loss": lambda v, t, g, n, **k: grounding_loss(g, n, PRESENT, 4.0, 3.0, **k),
    "grouping": lambda v, t, g, n, **k: grouping(g, n, mode="soft", **k).pooled,
    "temporal_bce": lambda v, t, g, n, **k: temporal_bce(n, PASTED, **k),
    "segment_pool": lambda v, t, g, n, **k: segment_pool(n, INDEX, 2, **k)[0],
}


def at(values: torch.Tensor, past: int, offset: int) -> torch.Tensor:
    """A copy of float16 `values` in memory of another owner, where STARTS says."""
    memory = bytearray(2 * (values.numel() + offset) + 32)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 16 + past
    whole = torch.frombuffer(
        memory, dtype=torch.float16, offset=start, count=values.numel() + offset
    )
    return whole[offset:].view(values.shape).copy_(values)


def rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        normalize(torch.randn(shape, generator=generator), dim=-1).half()
        for shape in SHAPES.values()
    ]


def both_ways(op: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [value.detach().requires_grad_() for value in inputs]
    output = OPS[op](*leaves, backend="fused")
    gradients = torch.autograd.grad(output.float().sum(), leaves, allow_unused=True)
    return [output, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("start", STARTS)
def test_the_tensors_start_where_they_should(start):
    past, offset = STARTS[start]
    for value in rows():
        moved = at(value, past, offset)
        assert moved.data_ptr() % 16 == (past + 2 * offset) % 16
        assert moved.storage_offset() == offset
        assert torch.equal(moved, value)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("op", OPS)
def test_an_op_takes_tensors_at_any_address(op, start):
    moved = both_ways(op, [at(value, *STARTS[start]) for value in rows()])
    for found, wanted in zip(moved, both_ways(op, rows()), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("start", STARTS)
def test_descriptors_start_at_multiples_of_16_bytes(start):
    past, offset = STARTS[start]
    value = at(rows()[0], past, offset)
    taken = _aligned(value)
    assert taken.data_ptr() % 16 == 0
    # A tensor that is aligned already is not copied.
    assert (taken is value) == ((past + 2 * offset) % 16 == 0)
