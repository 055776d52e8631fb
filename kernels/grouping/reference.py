"""The oracle of grouping: plain PyTorch with autograd, also in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from svilm_fast.core.philox import uniform4

from .options import GroupingOptions, Mode

# Half a step of the uniform grid; keeps log(u) finite if the generator returns 0.
SMALLEST_UNIFORM = 2.0**-32
_SAMPLES_AT_ONCE = 32


class GroupingOutput(NamedTuple):
    """The result of grouping.

    Attributes:
        pooled: [b, G, C] in the dtype of the tokens: sum_l A_gl x_l / (n_g + eps).
        counts: [b, G] in fp32 (float64 for float64 tokens): n_g = sum_l A_gl; differentiable.
        index: int32 [b, L]: the group of each token, -1 for a masked token.
    """

    pooled: Tensor
    counts: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


def gumbel_noise(seeds: Tensor, token_ids: Tensor, num_groups: int) -> Tensor:
    """Gumbel(0, 1) noise, a function of (seed, token id, group) only.

    Group g of token l takes word g % 4 of the Philox counter `token_id * ceil(G / 4) + g // 4`.

    Args:
        seeds: int64 [b].
        token_ids: int64 [b, L], in [0, 2^27).
        num_groups: G.

    Returns:
        float64 [b, L, G], -log(-log(max(u, 2^-32))) with u in fp32, bit-equal to `tl.rand4x`.
    """
    quads = -(-num_groups // 4)
    quad = torch.arange(quads, device=seeds.device)
    counters = (token_ids[..., None] * quads + quad).flatten(1)
    samples = uniform4(seeds, counters).reshape(*token_ids.shape, quads * 4)[..., :num_groups]
    return -torch.log(-torch.log(samples.double().clamp_min(SMALLEST_UNIFORM)))


def _group_some(
    queries: Tensor, tokens: Tensor, group_bias: Tensor | None, options: GroupingOptions
) -> GroupingOutput:
    token_ids, token_mask = options.token_ids, options.token_mask
    compute = torch.promote_types(tokens.dtype, torch.float32)
    x = tokens.to(compute)
    if token_mask is not None:
        # A masked token may hold any value, including NaN.
        x = x.masked_fill(~token_mask[..., None], 0)
    # logits_lg = q_g . x_l + bias_g + noise_lg
    logits = x @ queries.to(compute).mT
    if group_bias is not None:
        logits = logits + group_bias.to(compute)[:, None]
    if options.mode == "gumbel":
        assert options.seeds is not None
        if token_ids is None:
            token_ids = torch.arange(tokens.shape[1], device=tokens.device)
            token_ids = token_ids.expand(tokens.shape[:2])
        logits = logits + gumbel_noise(options.seeds, token_ids, queries.shape[1]).to(compute)
    soft = torch.softmax(logits / options.temperature, dim=-1)
    index = logits.argmax(dim=-1)
    if options.mode == "soft":
        assignment = soft
    else:
        one_hot = torch.zeros_like(soft).scatter(-1, index[..., None], 1)
        # The bracket is exactly 0, so the value is exactly one-hot.
        assignment = one_hot + (soft - soft.detach())
    if token_mask is not None:
        assignment = assignment * token_mask[..., None]
        index = index.where(token_mask, -1)
    counts = assignment.sum(dim=1)
    # pooled_g = sum_l A_gl x_l / (n_g + eps)
    pooled = assignment.mT @ x / (counts + options.eps)[..., None]
    return GroupingOutput(pooled.to(tokens.dtype), counts, index.to(torch.int32))


def group(
    queries: Tensor, tokens: Tensor, group_bias: Tensor | None, options: GroupingOptions
) -> GroupingOutput:
    """`api.grouping` without its checks, a few samples at a time.

    Under torch.compile it takes the whole batch at once, because the loop would be unrolled for
    every batch size.
    """
    batch, num_groups = queries.shape[:2]
    if group_bias is not None:
        group_bias = group_bias.expand(batch, num_groups)
    with torch.autocast(tokens.device.type, enabled=False):
        if torch.compiler.is_compiling():
            return _group_some(queries, tokens, group_bias, options)
        starts = range(0, max(batch, 1), _SAMPLES_AT_ONCE)
        some = [slice(start, start + _SAMPLES_AT_ONCE) for start in starts]
        parts = [
            _group_some(
                queries[rows],
                tokens[rows],
                None if group_bias is None else group_bias[rows],
                options.of_samples(rows),
            )
            for rows in some
        ]
    if len(parts) == 1:
        return parts[0]
    return GroupingOutput(*(torch.cat(columns) for columns in zip(*parts)))


def grouping_reference(
    queries: Tensor,
    tokens: Tensor,
    group_bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    mode: Mode = "gumbel",
    seeds: Tensor | None = None,
    token_ids: Tensor | None = None,
    token_mask: Tensor | None = None,
    eps: float = 1.0,
) -> GroupingOutput:
    """`group` with the arguments of `api.grouping` except `backend`."""
    options = GroupingOptions(seeds, token_ids, token_mask, mode, temperature, eps)
    return group(queries, tokens, group_bias, options)
