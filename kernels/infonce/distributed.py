"""Symmetric InfoNCE of the global batch: texts are all-gathered, videos stay rank-local."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from .. import collectives
from ..slices import SlicePlan, for_parts, gather_parts
from .api import InfoNCEPartials, check_block, chosen_path, infonce, relative_partials
from .options import Ids, InfonceOptions
from .pairs import share_weights


def distributed_infonce(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    *,
    group: dist.ProcessGroup | None = None,
    pair_ids: Tensor | None = None,
    pair_mode: str = "exclude",
    workspace_bytes: int | None = None,
    backend: str | None = None,
    check_ranks: bool = True,
) -> Tensor:
    """This rank's share of `infonce` on the pairs of all ranks.

    The loss on a rank is W/(2 B) x (terms of its rows + terms of its columns), so its mean over
    ranks is the loss of the global batch. Backward returns the gradient of the sum of the ranks'
    losses: averaging gradients over ranks (ZeRO, DDP) gives the gradient of the global batch,
    including that of `scale`. Forward takes an all-gather of texts (and ids) and two all-reduces
    of B floats for the column sums; backward takes one all-reduce of B floats and a reduce-scatter
    of the gradient of the texts. Large gathers and reduce-scatters run in slices that overlap with
    computation (`kernels.slices`).

    Args:
        videos, texts: [b, D] of this rank; b, D and dtype equal on all ranks.
        scale: the same value on all ranks (checked for a float, not for a tensor).
        group: process group; None is the default group, or a single rank if there is none.
        pair_ids: int64 [b]; equal ids on different ranks are one class.
        pair_mode, workspace_bytes, backend: as in `infonce`; equal on all ranks.
        check_ranks: compare the ranks' calls before any other collective. The check synchronises
            with the device if the group has no CPU backend. A caller that guarantees equal batches
            may disable it.

    Raises:
        ValueError: on every rank, if the input of a rank is invalid or the ranks' calls differ in
            a size, a dtype, a number or an option.
    """
    several = collectives.world_size(group) > 1
    options, path, problem = InfonceOptions(), "", None
    try:
        ids = (pair_ids, pair_ids)
        options = InfonceOptions.checked("infonce", 0, ids, pair_mode, workspace_bytes, backend)
        check_block("infonce", videos, texts, scale, options)
        if videos.shape != texts.shape:
            problem = (
                "videos and texts must be pairs [b, D], "
                f"got {list(videos.shape)} and {list(texts.shape)}"
            )
        elif check_ranks and several:
            path = chosen_path(videos, texts, scale, options)
    except Exception as error:  # the check below raises it on all ranks, which wait for this one
        problem = str(error) or type(error).__name__
    if check_ranks:
        collectives.check_equal_calls(
            "distributed_infonce",
            "" if problem else _description(videos, texts, scale, options, path),
            device=collectives.device_of(videos, texts),
            group=group,
            problem=problem,
        )
    elif problem is not None:
        raise ValueError(f"distributed_infonce: {problem}")
    if not several:
        return infonce(
            videos,
            texts,
            scale,
            pair_ids=pair_ids,
            pair_mode=pair_mode,
            workspace_bytes=workspace_bytes,
            backend=backend,
        )
    plan = SlicePlan.of(texts, group)
    calls = [replace(options, diagonal_offset=offset) for offset in plan.diagonal_offsets]
    if pair_ids is not None:
        column_ids = plan.parts(collectives.gather(pair_ids, group))
        calls = [replace(call, ids=(pair_ids, ids)) for call, ids in zip(calls, column_ids)]
    parts = zip(for_parts(videos, plan), gather_parts(texts, plan, group), calls)
    blocks = [relative_partials(rows, part, scale, call)[0] for rows, part, call in parts]
    rows, positives = _over_blocks(blocks, [call.share for call in calls if call.share])
    columns = plan.in_rank_order([block.column_lse for block in blocks])
    return _own_terms(InfoNCEPartials(rows, columns, positives), plan, group)


def _over_blocks(blocks: list[InfoNCEPartials], shared: list[Ids]) -> tuple[Tensor, Tensor]:
    """Log-sums and positives of the rows over all blocks; `shared`: ids per block in share mode."""
    first = blocks[0]
    if len(blocks) == 1:
        return first.row_lse, first.positives
    rows = torch.logsumexp(torch.stack([block.row_lse for block in blocks]), 0)
    if not shared:
        return rows, first.positives
    # The positive of a block is the mean over the texts of the block.
    video_ids, text_ids = shared[0][0], [texts for _, texts in shared]
    counted = (torch.cat(text_ids), *text_ids)
    weights = [share_weights(video_ids, ids, rows.dtype) for ids in counted]
    shares = [torch.where(own > 0, weights[0] / own, 0.0) for own in weights[1:]]
    means = [share * block.positives for share, block in zip(shares, blocks)]
    return rows, torch.stack(means).sum(0)


def _own_terms(block: InfoNCEPartials, plan: SlicePlan, group: dist.ProcessGroup | None) -> Tensor:
    rows, columns, positives = block
    columns = collectives.all_reduce_logsumexp(columns, group)
    first_column = plan.rank * plan.local_batch
    own_columns = columns[first_column : first_column + plan.local_batch]
    # In share mode a column's target is spread over rows of other ranks. Summed over all ranks, the
    # targets of rows and of columns are equal, and only this sum enters the global loss.
    return ((rows - positives) + (own_columns - positives)).mean() / 2


def _description(
    videos: Tensor, texts: Tensor, scale: Tensor | float, options: InfonceOptions, path: str
) -> str:
    return (
        f"a local batch of {videos.shape[0]} (D {videos.shape[1]}, "
        + collectives.described(
            {"videos": videos, "texts": texts, "scale": scale},
            ids="absent" if options.ids is None else "present",
            pair_mode=options.pair_mode,
            workspace_bytes=options.workspace_bytes,
            path=path,
        )
        + ")"
    )
