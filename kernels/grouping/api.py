"""The public function of grouping: it checks the arguments and chooses the path."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import choose
from ..checks import FLOATS, check_rows, check_shape, check_tensors, checked_divisor
from ..device import traits
from ..operators import distinct, without_values
from .fused.layout import unsupported
from .options import MODES, GroupingOptions, Mode
from .reference import GroupingOutput, group

TOKEN_ID_BITS = 27


def _check(
    queries: Tensor, tokens: Tensor, group_bias: Tensor | None, options: GroupingOptions
) -> None:
    given = options.tensors
    check_tensors("grouping", queries=queries, tokens=tokens, **given)
    if group_bias is not None:
        check_tensors("grouping", group_bias=group_bias)
    check_rows("grouping", "tokens", tokens, "[b, L, C]")
    batch, length, width = tokens.shape
    if queries.dim() != 3 or queries.shape[0] != batch or queries.shape[2] != width:
        raise ValueError(
            f"grouping: queries must be [{batch}, G, {width}] to fit the tokens, "
            f"got {list(queries.shape)}"
        )
    groups = queries.shape[1]
    if groups == 0 or queries.dtype not in FLOATS:
        raise ValueError(
            f"grouping: queries must hold at least one group of floating numbers, "
            f"got {queries.dtype} {list(queries.shape)}"
        )
    if group_bias is not None:
        shape = (groups,) if group_bias.dim() == 1 else (batch, groups)
        check_shape("grouping", "group_bias", group_bias, shape, None)
    if group_bias is not None and group_bias.dtype not in FLOATS:
        raise ValueError(f"grouping: group_bias must be floating, got {group_bias.dtype}")
    if options.mode not in MODES:
        raise ValueError(f"grouping: mode is {options.mode!r}; expected one of {', '.join(MODES)}")
    if options.mode == "gumbel" and options.seeds is None:
        raise ValueError(
            "grouping: mode 'gumbel' needs seeds, int64 [b]; "
            "take them from StepSeeds.at(Site.GUMBEL, layer) or use mode 'hard'"
        )
    expected = {
        "seeds": ((batch,), torch.int64),
        "token_ids": ((batch, length), torch.int64),
        "token_mask": ((batch, length), torch.bool),
    }
    for name, tensor in given.items():
        check_shape("grouping", name, tensor, *expected[name])


def _check_range(token_ids: Tensor, token_mask: Tensor | None) -> None:
    """Raise an error for ids that exceed the noise counters; on a GPU without synchronisation.

    The id of a masked token may have any value.
    """
    # The arithmetic shift gives 0 for ids within [0, 2^27) only.
    beyond = token_ids >> TOKEN_ID_BITS
    if token_mask is not None:
        beyond = beyond * token_mask
    inside = (beyond == 0).all()
    text = "grouping: token_ids must lie in [0, 2^27): a token's index before any was dropped"
    if token_ids.device.type != "cpu" or without_values(token_ids):
        torch._assert_async(inside, text)
    elif not inside:
        raise ValueError(f"{text}; got {int(token_ids[beyond != 0][0])}")


def grouping(
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
    backend: str | None = None,
) -> GroupingOutput:
    """Assign every token to one of G groups and pool each group's tokens.

    A = straight-through one-hot over the groups of softmax((q_g . x_l + bias_g + noise) / tau);
    pooled_g = sum_l A_gl x_l / (n_g + eps), n_g = sum_l A_gl. The key and value projections of
    GroupViT's assignment (Xu et al. 2022, section 3.2) are absorbed by the caller: W_k^T q into
    `queries`, q . b_k into `group_bias`, W_v and b_v onto `pooled` and `counts` (see README.md).

    Args:
        queries: [b, G, C]; cast to the dtype of the tokens.
        tokens: [b, L, C], fp16, bf16, fp32 or float64. Under autocast, queries and fp32 tokens are
            cast to the autocast dtype, as in a matrix product.
        group_bias: floating [b, G], [G] or None.
        temperature: tau of the softmax, in [2^-64, 2^64]. In the hard modes it affects the
            gradient only.
        mode: "gumbel" (one-hot with Gumbel noise, training), "hard" (one-hot without noise),
            "soft" (A is the softmax itself, without noise).
        seeds: int64 [b], one per sample; used in mode "gumbel" only.
        token_ids: int64 [b, L], the index of each token before token dropping, in [0, 2^27); it
            determines the noise of the token. None means 0 .. L - 1. Used in mode "gumbel" only.
        token_mask: bool [b, L]; a False token belongs to no group, and its row and id may hold
            any value, including NaN.
        eps: added to the counts before the division; in [2^-64, 2^64].
        backend: "auto", "fused", "reference" or None (see `kernels.backend.choose`).

    Returns:
        GroupingOutput(pooled [b, G, C], counts [b, G], index int32 [b, L]); gradients flow from
        `pooled` and `counts` to queries, tokens and group_bias.

    Raises:
        ValueError: an invalid shape, dtype or setting. On a GPU or in a compiled graph, ids out of
            range fail an asynchronous assertion instead.
        TypeError: `temperature` or `eps` is not a number.
        RuntimeError: the fused path was requested and cannot run.
    """
    temperature = checked_divisor("grouping", "temperature", temperature)
    eps = checked_divisor("grouping", "eps", eps)
    options = GroupingOptions(seeds, token_ids, token_mask, mode, temperature, eps)
    _check(queries, tokens, group_bias, options)
    kind = tokens.device.type
    if torch.is_autocast_enabled(kind) and tokens.dtype == torch.float32:
        tokens = tokens.to(torch.get_autocast_dtype(kind))
    queries = queries.to(tokens.dtype)
    path = choose(
        "grouping",
        (queries, tokens, group_bias, *options.tensors.values()),
        backend=backend,
        unsupported=unsupported(
            queries.shape[1], tokens.shape[2], tokens.dtype, traits(tokens.device)
        ),
    )
    if token_ids is not None and mode == "gumbel":
        _check_range(token_ids, token_mask)
    queries, tokens = distinct(queries, tokens)
    if path == "reference":
        return group(queries, tokens, group_bias, options)
    from .fused.function import fused_grouping

    return fused_grouping(queries, tokens, group_bias, options)
