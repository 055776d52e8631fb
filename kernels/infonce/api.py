"""Public functions of symmetric InfoNCE: checks, documentation, choice of the path."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import backend as backends
from ..checks import FLOATS, check_tensors, checked_workspace, real_number, whole_number
from ..operators import distinct
from . import reference
from .fused.layout import default_workspace_bytes, unsupported
from .pairs import (
    PairMode,
    checked_pair_mode,
    dense_ids,
    diagonal_range,
    share_weights,
    shared_loss,
    two_lists,
)

OP = "infonce"
# On CPU a larger chunk only leaves the cache; the fused backward wants large matrix products.
REFERENCE_WORKSPACE_BYTES = 1 << 26


class InfoNCEPartials(NamedTuple):
    """What a block knows of its rows and columns, in natural logarithms, differentiable.

    Attributes:
        row_lse: [m] log of the sum over the block's columns of exp(scale * a_ij).
        column_lse: [n] log of the sum over the block's rows; -inf where nothing is summed.
        positives: [m] scale * a of the row's positive, or the mean over the texts that share its
            id (`pair_mode="share"`); 0 where the block holds no positive of the row.
    """

    row_lse: Tensor
    column_lse: Tensor
    positives: Tensor


def infonce(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    *,
    diagonal_offset: int = 0,
    pair_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    pair_mode: str = "exclude",
    workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Symmetric InfoNCE of paired embeddings (van den Oord 2018, eq. 4; CLIP's two directions).

    With a_ij = <v_i, t_j> and P pairs (i, i + offset) inside the block:
    loss = 1/(2P) sum_pairs [lse_j(scale a_ij) - scale a_ii'] + [lse_i(scale a_ij) - scale a_ii'].
    Rows and columns without a partner take part as negatives only.

    Args:
        videos: [m, D] unit-norm rows (normalise outside, in fp32); fp16, bf16, fp32 or fp64.
            Other norms lose digits in proportion to `scale` max(1, norm^2): see README.md, Limits.
        texts: [n, D], same dtype and device.
        scale: 0-dim tensor (differentiable) or float, the inverse temperature.
        diagonal_offset: column of row i's positive is i + diagonal_offset.
        pair_ids: int64 ids [m] of a square block, or (video ids [m], text ids [n]). Equal ids off
            the diagonal are no negatives:
        pair_mode: `exclude` leaves them out of the softmax; `share` (square block only) spreads
            a row's target evenly over all texts with its id, and a column's over all videos with
            its id; a line without an equal id adds 0 to the loss.
        workspace_bytes: bound of the temporary memory, at least one tile row of logits; None
            takes the default of the path (fused 512 MiB, or more where 2,048 rows of the
            gradient need it; reference 64 MiB).
        backend: `fused`, `reference` or `auto`; None asks `kernels.backend`.

    Returns:
        0-dim fp32 loss (fp64 for fp64 inputs). Differentiable once.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or ids that do not fit; an empty block.
    """
    video_ids, text_ids = _split_ids(pair_ids)
    diagonal_offset = whole_number(OP, "diagonal_offset", diagonal_offset)
    workspace_bytes = checked_workspace(OP, workspace_bytes)
    check_block(OP, videos, texts, scale, video_ids, text_ids, workspace_bytes)
    mode = checked_pair_mode(pair_mode)
    scale = _scale_tensor(scale, videos)
    rows, columns = videos.shape[0], texts.shape[0]
    start, stop = diagonal_range(rows, columns, diagonal_offset)
    if start == stop:
        raise ValueError(
            f"infonce: no pair lies in a [{rows}, {columns}] block with diagonal_offset "
            f"{diagonal_offset}; use infonce_partials for blocks beside the diagonal"
        )
    if pair_ids is not None and not isinstance(pair_ids, tuple) and rows != columns:
        raise ValueError(
            f"infonce: one pair_ids serves a square block, got [{rows}, {columns}]; "
            "pass (video_ids, text_ids)"
        )
    if mode == "share" and video_ids is not None and (rows != columns or diagonal_offset):
        raise ValueError(
            "infonce: pair_mode='share' needs a square block without offset, got "
            f"[{rows}, {columns}] with diagonal_offset {diagonal_offset}"
        )
    if chosen_path(videos, texts, scale, video_ids, text_ids, backend) == "fused":
        from .fused.function import InfoNCELoss, InfoNCEPartialSums

        call = _fused_call(videos, texts, scale, video_ids, text_ids, mode)
        workspace = workspace_bytes or default_workspace_bytes(videos, texts)
        if video_ids is not None and text_ids is not None and two_lists(video_ids, text_ids, mode):
            row_lse, column_lse, positives = InfoNCEPartialSums.apply(
                *call, diagonal_offset, workspace
            )
            return shared_loss(row_lse, column_lse, positives, video_ids, text_ids)
        return InfoNCELoss.apply(*call, diagonal_offset, workspace)
    return reference.infonce(
        videos,
        texts,
        scale,
        diagonal_offset=diagonal_offset,
        pair_ids=None if video_ids is None or text_ids is None else (video_ids, text_ids),
        pair_mode=mode,
        workspace_bytes=workspace_bytes or REFERENCE_WORKSPACE_BYTES,
    )


def infonce_partials(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    *,
    diagonal_offset: int = 0,
    video_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    pair_mode: str = "exclude",
    workspace_bytes: int | None = None,
    backend: str | None = None,
) -> InfoNCEPartials:
    """Row and column sums of one block of the logits, for callers that combine blocks.

    Column sums of blocks with the same columns combine by `torch.logaddexp`; so do row sums.
    In `share` mode the block must hold all texts: a row's target is spread over the equal
    `text_ids` it sees. Arguments and errors as `infonce`; the diagonal may miss the block.
    """
    relative, scale = relative_partials(
        videos,
        texts,
        scale,
        diagonal_offset=diagonal_offset,
        video_ids=video_ids,
        text_ids=text_ids,
        pair_mode=pair_mode,
        workspace_bytes=workspace_bytes,
        backend=backend,
    )
    return InfoNCEPartials(*(value + scale for value in relative))


def relative_partials(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    *,
    diagonal_offset: int,
    video_ids: Tensor | None,
    text_ids: Tensor | None,
    pair_mode: str,
    workspace_bytes: int | None,
    backend: str | None,
) -> tuple[InfoNCEPartials, Tensor]:
    """`infonce_partials` less the scale, and the scale as a tensor.

    A loss only needs differences, and in fp32 the values of confident pairs keep their digits
    when they are small. That holds for rows of unit norm, whose largest logit is the scale.
    """
    diagonal_offset = whole_number("infonce_partials", "diagonal_offset", diagonal_offset)
    workspace_bytes = checked_workspace("infonce_partials", workspace_bytes)
    check_block("infonce_partials", videos, texts, scale, video_ids, text_ids, workspace_bytes)
    mode = checked_pair_mode(pair_mode)
    scale = _scale_tensor(scale, videos)
    if chosen_path(videos, texts, scale, video_ids, text_ids, backend) == "fused":
        from .fused.function import InfoNCEPartialSums

        call = _fused_call(videos, texts, scale, video_ids, text_ids, mode)
        workspace = workspace_bytes or default_workspace_bytes(videos, texts)
        return InfoNCEPartials(*InfoNCEPartialSums.apply(*call, diagonal_offset, workspace)), scale
    found = reference.partials(
        videos,
        texts,
        scale,
        diagonal_offset=diagonal_offset,
        video_ids=video_ids,
        text_ids=text_ids,
        pair_mode=mode,
        workspace_bytes=workspace_bytes or REFERENCE_WORKSPACE_BYTES,
    )
    return InfoNCEPartials(*(value - scale for value in found)), scale


def _fused_call(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor,
    video_ids: Tensor | None,
    text_ids: Tensor | None,
    mode: PairMode,
) -> tuple[Tensor | None, ...]:
    """The tensors as the kernels take them."""
    weights = None
    if video_ids is not None and text_ids is not None:
        if mode == "share":
            weights = share_weights(video_ids, text_ids, torch.float32)
        video_ids, text_ids = dense_ids(video_ids, text_ids)
    return distinct(videos.contiguous(), texts.contiguous(), scale, video_ids, text_ids, weights)


def chosen_path(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    video_ids: Tensor | None,
    text_ids: Tensor | None,
    backend: str | None,
) -> backends.Backend:
    """The path of a checked call; errors as `backend.choose`."""
    return backends.choose(
        OP,
        (videos, texts, scale if isinstance(scale, Tensor) else None, video_ids, text_ids),
        backend=backend,
        unsupported=unsupported(videos),
    )


def _scale_tensor(scale: Tensor | float, videos: Tensor) -> Tensor:
    if isinstance(scale, Tensor):
        return scale
    # full, not as_tensor: a copy from the host would synchronise.
    dtype = reference.compute_dtype(videos.dtype)
    return torch.full((), float(scale), dtype=dtype, device=videos.device)


def _split_ids(
    pair_ids: Tensor | tuple[Tensor, Tensor] | None,
) -> tuple[Tensor | None, Tensor | None]:
    if isinstance(pair_ids, tuple):
        if len(pair_ids) != 2:
            raise ValueError(f"infonce: pair_ids must be ids or two lists of ids, got {pair_ids!r}")
        return pair_ids
    return pair_ids, pair_ids


def check_block(
    name: str,
    videos: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    video_ids: Tensor | None,
    text_ids: Tensor | None,
    workspace_bytes: int | None,
) -> None:
    """Refuse what no path can compute.

    Raises:
        TypeError: no tensor, or a dtype that does not fit.
        ValueError: shapes, devices or a budget that do not fit.
    """
    check_tensors(name, videos=videos, texts=texts)
    if videos.ndim != 2 or texts.ndim != 2 or videos.shape[1] != texts.shape[1]:
        raise ValueError(
            f"{name}: expected videos [m, D] and texts [n, D], "
            f"got {list(videos.shape)} and {list(texts.shape)}"
        )
    if 0 in videos.shape or 0 in texts.shape:
        raise ValueError(
            f"{name}: empty input has no loss, got {list(videos.shape)} and {list(texts.shape)}"
        )
    if videos.dtype != texts.dtype or videos.dtype not in FLOATS:
        raise TypeError(
            f"{name}: videos and texts must share one of fp16, bf16, fp32, fp64, "
            f"got {videos.dtype} and {texts.dtype}"
        )
    if not isinstance(scale, Tensor):
        real_number(name, "scale", scale)
    elif scale.ndim != 0 or not scale.dtype.is_floating_point:
        raise ValueError(
            f"{name}: scale must be a 0-dim floating tensor or a float, "
            f"got {scale.dtype} {list(scale.shape)}"
        )
    if (video_ids is None) != (text_ids is None):
        raise ValueError(f"{name}: pass ids for videos and for texts, or neither")
    for side, ids, embeddings in (("video", video_ids, videos), ("text", text_ids, texts)):
        if ids is None:
            continue
        check_tensors(name, **{f"{side}_ids": ids})
        if ids.dtype != torch.int64 or ids.shape != embeddings.shape[:1]:
            raise ValueError(
                f"{name}: {side} ids must be int64 [{embeddings.shape[0]}], "
                f"got {ids.dtype} {list(ids.shape)}"
            )
    checked_workspace(name, workspace_bytes)
