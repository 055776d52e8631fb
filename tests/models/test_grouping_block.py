"""The grouping block: GroupViT's assignment, written out with keys and values, gives the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svilm_fast.kernels.grouping.reference import gumbel_noise
from svilm_fast.models.attention import KeyPadding
from svilm_fast.models.grouping_block import GroupingBlock, TokenAssigner

BATCH, GROUPS, TOKENS, WIDTH = 2, 5, 11, 6
IDS = torch.arange(TOKENS).expand(BATCH, -1)


def _randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.double()


def _inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    groups = torch.randn(BATCH, GROUPS, WIDTH, dtype=torch.float64, generator=generator)
    tokens = torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64, generator=generator)
    return groups.requires_grad_(), tokens.requires_grad_()


def _groupvit_assignment(
    module: TokenAssigner, groups: Tensor, tokens: Tensor, noise: Tensor | None, mask: Tensor
) -> Tensor:
    """Attention over groups with projected keys and values: hard straight-through, eps 1."""
    query = module.query(groups)
    key = F.linear(tokens, module.key_weight, module.key_bias)
    value = F.linear(tokens, module.value_weight, module.value_bias)
    logits = query @ key.transpose(1, 2) * WIDTH**-0.5
    if noise is not None:
        logits = logits + noise.transpose(1, 2)
    soft = logits.softmax(dim=1)
    hard = F.one_hot(logits.argmax(dim=1), GROUPS).transpose(1, 2).to(soft.dtype)
    assignment = (hard - soft.detach() + soft) * mask[:, None]
    assignment = assignment / (assignment.sum(dim=-1, keepdim=True) + 1.0)
    return module.output(assignment @ value)


@pytest.mark.parametrize("mode", ["hard", "gumbel"])
@pytest.mark.parametrize("padded", [False, True])
def test_absorbed_projections_equal_projected_keys_and_values(mode, padded):
    module = _randomise(TokenAssigner(WIDTH, temperature=1.0))
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    if padded:
        mask[1, 7:] = False
    seeds = torch.tensor([5, 99]) if mode == "gumbel" else None
    noise = None if seeds is None else gumbel_noise(seeds, IDS, GROUPS)
    results = []
    for absorbed in (True, False):
        groups, tokens = _inputs()
        if absorbed:
            out, _, _ = module(
                groups,
                tokens,
                mode=mode,
                seeds=seeds,
                token_ids=IDS,
                token_mask=mask if padded else None,
            )
        else:
            out = _groupvit_assignment(module, groups, tokens, noise, mask)
        leaves = [groups, tokens, *module.parameters()]
        weights = torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    for absorbed, written_out in zip(*results, strict=True):
        torch.testing.assert_close(absorbed, written_out, rtol=0, atol=1e-10)
        assert absorbed.abs().max() > 0


def _block(**settings: float) -> GroupingBlock:
    block = GroupingBlock(
        WIDTH, 2, GROUPS, mlp_ratio=2.0, mixer_ratio=0.5, temperature=1.0, backend="sdpa"
    )
    return _randomise(block)


def test_block_equals_the_published_sequence_of_steps():
    """Norms, token mixing, cross-attention block with its norm at the end, assignment, MLP."""
    block = _block()
    groups, tokens = _inputs()
    x, g = block.token_norm(tokens), block.group_norm(groups)
    query = block.mixer_norm(block.mixer(g.transpose(1, 2)).transpose(1, 2))
    cross = block.cross_attention
    key, value = cross.key_value(x).chunk(2, dim=-1)
    heads = [
        (q @ k.transpose(1, 2) / 3**0.5).softmax(dim=-1) @ v
        for q, k, v in zip(
            cross.query(query).chunk(2, dim=-1),
            key.chunk(2, dim=-1),
            value.chunk(2, dim=-1),
            strict=True,
        )
    ]
    query = query + cross.output(torch.cat(heads, dim=-1))
    query = query + block.cross_mlp(block.cross_mlp_norm(query))
    query = block.cross_norm(query)
    mask = torch.ones(BATCH, TOKENS)
    new = query + _groupvit_assignment(block.assignment, query, x, None, mask)
    expected = new + block.channel_mlp(block.channel_norm(new))
    out, counts, index = block(groups, tokens, mode="hard", seeds=None, token_ids=IDS, padding=None)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    assert counts.sum(1).tolist() == [TOKENS, TOKENS]
    assert index.dtype == torch.int32


def test_padded_tokens_do_not_count():
    block = _block()
    groups, tokens = _inputs()
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask[:, 8:] = False
    call = {"mode": "hard", "seeds": None}
    padded, counts, index = block(groups, tokens, token_ids=IDS, padding=KeyPadding(mask), **call)
    cut, cut_counts, _ = block(groups, tokens[:, :8], token_ids=IDS[:, :8], padding=None, **call)
    torch.testing.assert_close(padded, cut)
    torch.testing.assert_close(counts, cut_counts)
    assert (index[:, 8:] == -1).all()


def test_gradients_in_float64():
    block = _block()
    groups, tokens = _inputs()

    def soft(groups: Tensor, tokens: Tensor) -> Tensor:
        return block(groups, tokens, mode="soft", seeds=None, token_ids=IDS, padding=None)[0]

    assert torch.autograd.gradcheck(soft, (groups, tokens), atol=1e-6, fast_mode=True)
