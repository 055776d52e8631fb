"""The grounding loss of a batch that is distributed over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from svilm_fast.kernels import collectives
from svilm_fast.kernels.checks import as_scalar
from svilm_fast.kernels.operators import first_derivative_only
from svilm_fast.kernels.slices import SlicePlan, for_parts, gather_parts

from .api import OP, check_inputs, chosen_path, loss_of, scores_of
from .options import GroundingOptions

# (groups [b, G, D], nouns [B, K, D], noun_mask [B, K], beta) -> scores [b, B]
Scores = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def distributed_grounding_loss(
    groups: Tensor,
    nouns: Tensor,
    noun_mask: Tensor,
    beta: Tensor | float,
    scale: Tensor | float,
    *,
    group: dist.ProcessGroup | None = None,
    scores: Scores | None = None,
    pair_ids: Tensor | None = None,
    workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """`grounding_loss` of the global batch, for data parallelism that averages gradients.

    The loss on a rank is W/(2N) times the sum over its own valid rows and columns, N valid captions
    over all ranks: the mean over ranks is the loss of the global batch, and the mean of the ranks'
    gradients is its gradient. Nouns and their masks are all-gathered, group tokens stay rank-local;
    two all-reduces of B floats (maximum, then sum) complete the column sums. Every rank issues
    every collective, even without a valid caption. Large gathers and reduce-scatters run in slices
    that overlap with computation (`kernels.slices`).

    Args:
        groups: [b, G, D] of this rank, unit vectors.
        nouns: [b, K, D] of this rank; b, K and D equal on all ranks.
        noun_mask: bool [b, K].
        beta, scale, workspace_bytes, backend: as in `grounding_loss`; equal on all ranks.
        group: process group; None is the default group, or a single rank if there is none.
        scores: another similarity, as a function of (groups, gathered nouns, gathered mask, beta);
            called for a part of the gathered captions at a time.
        pair_ids: int64 [b]; a video and the caption of another sample with an equal id, on any
            rank, are left out of both softmaxes. They are gathered, and a mask [b, B] is kept; on
            one rank the scores are formed too.

    Returns:
        0-dim float32 (float64 for float64 inputs).

    Raises:
        ValueError: on all ranks, if the input of a rank is invalid, `fused` was requested and
            cannot run on a rank, or the ranks' calls differ in a size, a dtype, a number or an
            option.
        RuntimeError: `fused` was requested and cannot run, on a single rank.
    """
    options = GroundingOptions(workspace_bytes, backend)
    options = _checked(groups, nouns, noun_mask, beta, scale, group, scores, pair_ids, options)
    beta = as_scalar(OP, "beta", beta, groups)
    scale = as_scalar(OP, "scale", scale, groups)
    if scores is None and pair_ids is None and collectives.world_size(group) == 1:
        return loss_of(groups, nouns, noun_mask, beta, scale, options)
    plan = SlicePlan.of(nouns, group)
    masks = plan.parts(collectives.gather(noun_mask.to(torch.uint8), group).bool())
    parts = [
        scores_of(tokens, part, mask, beta, options)
        if scores is None
        else scores(tokens, part, mask, beta)
        for tokens, part, mask in zip(
            for_parts(groups, plan), gather_parts(nouns, plan, group), masks
        )
    ]
    local = parts[0] if plan.whole else torch.cat(parts, 1)
    valid = torch.cat(masks).any(1)
    excluded = None
    if pair_ids is not None:
        every = torch.cat(plan.parts(collectives.gather(pair_ids, group)))
        excluded = pair_ids[:, None] == every
        excluded.diagonal(plan.diagonal_offsets[0]).fill_(False)
    total = _own_terms(local, scale, valid, excluded, plan, group)
    return total * plan.world_size / (2 * valid.sum().clamp(min=1))


class _GroundingSums(torch.autograd.Function):
    """Log-sums of rows and columns, and positives, of scores [b, B]; saves no second such matrix.

    The row sums of valid captions exclude the columns of invalid captions; `excluded` pairs, bool
    [b, B] or None, are in no sum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        scale: Tensor,
        own_valid: Tensor,
        valid: Tensor,
        first: int,
        excluded: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = _masked(scores * scale, excluded)
        columns = logits.logsumexp(0)
        positives = logits.diagonal(first).clone()
        rows = logits.masked_fill_(own_valid[:, None] & ~valid, -torch.inf).logsumexp(1)
        ctx.save_for_backward(scores, scale, own_valid, valid, rows, columns, excluded)
        ctx.first = first
        return rows, columns, positives

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, of_rows: Tensor, of_columns: Tensor, of_positives: Tensor) -> Any:
        scores, scale, own_valid, valid, rows, columns, excluded = ctx.saved_tensors
        logits = _masked(scores * scale, excluded)
        gradient = (logits - columns).exp_().mul_(of_columns)
        logits.masked_fill_(own_valid[:, None] & ~valid, -torch.inf)
        gradient += logits.sub_(rows[:, None]).exp_().mul_(of_rows[:, None])
        gradient.diagonal(ctx.first).add_(of_positives)
        by_scale = torch.mul(gradient, scores, out=logits).sum().to(scale.dtype)
        return gradient.mul_(scale).to(scores.dtype), by_scale, None, None, None, None


def _masked(logits: Tensor, excluded: Tensor | None) -> Tensor:
    return logits if excluded is None else logits.masked_fill_(excluded, -torch.inf)


def _own_terms(
    scores: Tensor,
    scale: Tensor,
    valid: Tensor,
    excluded: Tensor | None,
    plan: SlicePlan,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Sum of the terms of this rank's valid rows and columns; scores [b, B] in order of parts."""
    batch, first = scores.shape[0], plan.diagonal_offsets[0]
    own_valid = valid[first : first + batch]
    with torch.autocast(scores.device.type, enabled=False):
        scale = scale.to(torch.promote_types(scores.dtype, scale.dtype))
        rows, columns, positives = _GroundingSums.apply(
            scores, scale, own_valid, valid, first, excluded
        )
        columns = plan.in_rank_order(columns.split(plan.part_sizes))
        columns = collectives.all_reduce_logsumexp(columns, group)
        own = plan.rank * batch
        terms = rows + columns[own : own + batch] - 2 * positives
        return terms.masked_fill(~own_valid, 0).sum()


def _checked(
    groups: Tensor,
    nouns: Tensor,
    noun_mask: Tensor,
    beta: Tensor | float,
    scale: Tensor | float,
    group: dist.ProcessGroup | None,
    scores: Scores | None,
    pair_ids: Tensor | None,
    options: GroundingOptions,
) -> GroundingOptions:
    problem, path = None, ""
    several = collectives.world_size(group) > 1
    try:
        check_inputs(groups, nouns, noun_mask)
        tensors = (as_scalar(OP, "beta", beta, groups), as_scalar(OP, "scale", scale, groups))
        options = GroundingOptions.checked(OP, options.workspace_bytes, options.backend)
        if groups.shape[0] != nouns.shape[0] or not groups.shape[0]:
            problem = (
                "each rank needs as many captions as videos and at least one, "
                f"got {nouns.shape[0]} captions and {groups.shape[0]} videos"
            )
        elif pair_ids is not None and (
            pair_ids.shape != groups.shape[:1] or pair_ids.dtype != torch.int64
        ):
            problem = (
                f"pair_ids must be int64 [{groups.shape[0]}], got {pair_ids.dtype} "
                f"{list(pair_ids.shape)}"
            )
        elif several and scores is None:
            path = chosen_path(groups, nouns, noun_mask, tensors[0], backend=options.backend)
    except Exception as error:  # the check below raises it on all ranks, which wait for this one
        problem = str(error) or type(error).__name__
    description = ""
    if problem is None:
        # The name, because the address in the function's repr differs between ranks.
        similarity = "softmax" if scores is None else getattr(scores, "__qualname__", "another")
        description = f"groups {list(groups.shape)} and nouns {list(nouns.shape)} ("
        description += collectives.described(
            {"groups": groups, "nouns": nouns, "beta": beta, "scale": scale},
            similarity=similarity,
            ids="absent" if pair_ids is None else "present",
            workspace_bytes=options.workspace_bytes,
            path=path,
        )
        description += ")"
    collectives.check_equal_calls(
        "distributed_grounding_loss",
        description,
        device=collectives.device_of(groups, nouns),
        group=group,
        problem=problem,
    )
    return options
