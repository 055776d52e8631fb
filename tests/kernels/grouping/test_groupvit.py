"""GroupViT's assignment, written from its equation, equals grouping with absorbed projections."""

import pytest
import torch
from torch.nn import functional as F

from svilm_fast.kernels import grouping
from svilm_fast.kernels.grouping.reference import gumbel_noise

B, L, C, G = 3, 23, 12, 5


def parameters():
    generator = torch.Generator().manual_seed(11)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    names = ("groups", "tokens", "w_q", "b_q", "w_k", "b_k", "w_v", "b_v", "w_o", "b_o")
    shapes = [(B, G, C), (B, L, C)] + [(C, C), (C,)] * 4
    return {name: normal(*shape) for name, shape in zip(names, shapes)}


def assign_with_projections(p, noise):
    """Project, softmax over groups, straight-through one-hot, shrunk mean of the values."""
    query = F.linear(p["groups"], p["w_q"], p["b_q"])
    key = F.linear(p["tokens"], p["w_k"], p["b_k"])
    value = F.linear(p["tokens"], p["w_v"], p["b_v"])
    logits = torch.einsum("bgc,blc->bgl", query, key) * C**-0.5
    soft = torch.softmax(logits + noise.mT, dim=1)
    winner = F.one_hot(soft.argmax(dim=1), G).mT.to(soft.dtype)
    attention = winner - soft.detach() + soft
    attention = attention / (attention.sum(dim=2, keepdim=True) + 1.0)
    return F.linear(attention @ value, p["w_o"], p["b_o"])


def assign_absorbed(p, **arguments):
    query = F.linear(p["groups"], p["w_q"], p["b_q"]) * C**-0.5
    out = grouping(query @ p["w_k"], p["tokens"], query @ p["b_k"], eps=1.0, **arguments)
    share = (out.counts / (out.counts + 1.0))[..., None]
    return F.linear(F.linear(out.pooled, p["w_v"]) + share * p["b_v"], p["w_o"], p["b_o"])


@pytest.mark.parametrize("mode", ["gumbel", "hard"])
def test_equal_forward_and_all_gradients(mode):
    p = parameters()
    seeds = torch.tensor([1, 22, 333])
    noise = torch.zeros(B, L, G, dtype=torch.float64)
    if mode == "gumbel":
        noise = gumbel_noise(seeds, torch.arange(L).expand(B, L), G)
    expected = assign_with_projections(p, noise)
    actual = assign_absorbed(p, mode=mode, seeds=seeds)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)

    upstream = torch.randn(B, G, C, dtype=torch.float64)
    expected_gradients = torch.autograd.grad(expected, list(p.values()), upstream)
    actual_gradients = torch.autograd.grad(actual, list(p.values()), upstream)
    for name, ours, theirs in zip(p, actual_gradients, expected_gradients):
        # b_q adds the same to every group's logit, which a softmax over groups does not see.
        assert (theirs.abs().max() > 1e-6) == (name != "b_q"), name
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10, msg=name)
