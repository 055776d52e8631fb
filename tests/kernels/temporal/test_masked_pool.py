"""Pooling into segments: no index is cut to 32 bits, and what has no segment may hold anything."""

import pytest
import torch

from svilm_fast.kernels import segment_pool

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("outside", [-(2**63), -1, 3, 2**32, 2**32 + 1, 2**63 - 1])
def test_an_index_far_outside_is_no_segment(backend, outside):
    index = torch.tensor([0, 1, 2, outside, 1], device=DEVICE)
    tokens = torch.arange(10.0, device=DEVICE).view(1, 5, 2).requires_grad_()
    segments, mask = segment_pool(tokens, index, 3, backend=backend)
    wanted = torch.tensor([[[0.0, 1.0], [5.0, 6.0], [4.0, 5.0]]], device=DEVICE)
    torch.testing.assert_close(segments, wanted)
    assert mask.all()
    segments.sum().backward()
    wanted = torch.tensor([1.0, 0.5, 1.0, 0.0, 0.5], device=DEVICE)
    torch.testing.assert_close(tokens.grad[0, :, 0], wanted)


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("hidden", [float("nan"), float("inf")])
def test_tokens_without_a_segment_may_hold_anything(backend, hidden):
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(2, 9, 5, generator=generator)
    mask = torch.rand(2, 9, generator=generator) < 0.7
    index = torch.arange(9) // 3
    index[4] = -1
    absent = ~mask | (index < 0)
    results = []
    for tokens in (clean, clean.masked_fill(absent[..., None], hidden)):
        leaf = tokens.to(DEVICE).requires_grad_()
        segments, present = segment_pool(
            leaf, index.to(DEVICE), 3, token_mask=mask.to(DEVICE), backend=backend
        )
        weights = torch.linspace(1, 2, segments.numel(), device=DEVICE).view_as(segments)
        results.append(
            (segments, present, torch.autograd.grad((segments * weights).sum(), leaf)[0])
        )
    for found, wanted in zip(*results):
        assert torch.equal(found, wanted)
    assert not results[1][2][absent.to(DEVICE)].any()
