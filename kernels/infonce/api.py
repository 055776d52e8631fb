"""Public functions of symmetric InfoNCE: they check the arguments and choose the path."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend as backends
from ..checks import FLOATS, as_scalar, check_scalar, check_tensors
from ..operators import distinct
from . import reference
from .fused.layout import default_workspace_bytes, unsupported
from .options import InfonceOptions
from .pairs import dense_ids, diagonal_range, share_weights, shared_loss

OP = "infonce"


class InfoNCEPartials(NamedTuple):
    """Log-sums (natural logarithms) and positives of one block of logits, all differentiable.

    Attributes:
        row_lse: [m] log of the sum over the block's columns of exp(scale * a_ij).
        column_lse: [n] log of the sum over the block's rows; -inf for an empty sum.
        positives: [m] scale * a_ij of the row's positive, or the mean over the texts with the
            row's id (`pair_mode="share"`); 0 if the block holds no positive of the row.
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
    Rows and columns without a pair serve as negatives only.

    Args:
        videos: [m, D] unit-norm rows (normalise outside, in fp32); fp16, bf16, fp32 or fp64.
            With other norms, precision drops in proportion to `scale` max(1, norm^2): see
            README.md, Limits.
        texts: [n, D], same dtype and device.
        scale: 0-dim tensor (differentiable) or float, the inverse temperature.
        diagonal_offset: the positive of row i is column i + diagonal_offset.
        pair_ids: int64 ids [m] of a square block, or (video ids [m], text ids [n]). Pairs off the
            diagonal with equal ids are not negatives; `pair_mode` says how they are treated.
        pair_mode: `exclude` leaves them out of the softmax; `share` (square block only) spreads
            a row's target evenly over all texts with its id, and a column's over all videos with
            its id; a row or column without an equal id adds 0 to the loss.
        workspace_bytes: bound of the temporary memory, at least one tile row of logits; None
            takes the default of the path (fused 512 MiB, or more if 2,048 rows of the gradient
            need more; reference 64 MiB).
        backend: `fused`, `reference` or `auto`; None takes the setting of `kernels.backend`.

    Returns:
        0-dim fp32 loss (fp64 for fp64 inputs). Differentiable once.

    Raises:
        ValueError, TypeError: invalid shapes, dtypes, devices or ids; an empty block.
    """
    ids = _split_ids(pair_ids)
    options = InfonceOptions.checked(OP, diagonal_offset, ids, pair_mode, workspace_bytes, backend)
    check_block(OP, videos, texts, scale, options)
    scale = as_scalar(OP, "scale", scale, videos)
    rows, columns, offset = videos.shape[0], texts.shape[0], options.diagonal_offset
    start, stop = diagonal_range(rows, columns, offset)
    if start == stop:
        raise ValueError(
            f"infonce: no pair lies in a [{rows}, {columns}] block with diagonal_offset "
            f"{offset}; use infonce_partials for blocks off the diagonal"
        )
    if pair_ids is not None and not isinstance(pair_ids, tuple) and rows != columns:
        raise ValueError(
            f"infonce: a single pair_ids tensor needs a square block, got [{rows}, {columns}]; "
            "pass (video_ids, text_ids)"
        )
    if options.share and (rows != columns or offset):
        raise ValueError(
            "infonce: pair_mode='share' needs a square block without offset, got "
            f"[{rows}, {columns}] with diagonal_offset {offset}"
        )
    if chosen_path(videos, texts, scale, options) == "reference":
        return reference.loss(videos, texts, scale, options)
    from .fused.function import InfoNCELoss, InfoNCEPartialSums

    call = _fused_call(videos, texts, scale, options)
    if options.shared_lists:
        return shared_loss(*InfoNCEPartialSums.apply(*call), ids=options.shared_lists)
    return InfoNCELoss.apply(*call)


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
    """Row and column log-sums of one block of the logits, for callers that combine blocks.

    `torch.logaddexp` combines the column log-sums of blocks with the same columns, and the row
    log-sums of blocks with the same rows. In `share` mode the block must hold all texts, because
    a row's target is spread over the equal `text_ids` of the block. Arguments and errors are those
    of `infonce`; the block may lie off the diagonal.
    """
    ids = (video_ids, text_ids)
    name = "infonce_partials"
    options = InfonceOptions.checked(
        name, diagonal_offset, ids, pair_mode, workspace_bytes, backend
    )
    check_block(name, videos, texts, scale, options)
    relative, scale = relative_partials(videos, texts, scale, options)
    return InfoNCEPartials(*(value + scale for value in relative))


def relative_partials(
    videos: Tensor, texts: Tensor, scale: Tensor | float, options: InfonceOptions
) -> tuple[InfoNCEPartials, Tensor]:
    """`infonce_partials` of a checked block minus the scale, and the scale as a tensor.

    A loss needs only differences of these values. The largest logit of unit-norm rows is the scale,
    so the values of confident pairs are small and precise in fp32.
    """
    scale = as_scalar(OP, "scale", scale, videos)
    if chosen_path(videos, texts, scale, options) == "reference":
        found = reference.partials(videos, texts, scale, options)
        return InfoNCEPartials(*(value - scale for value in found)), scale
    from .fused.function import InfoNCEPartialSums

    call = _fused_call(videos, texts, scale, options)
    return InfoNCEPartials(*InfoNCEPartialSums.apply(*call)), scale


def _fused_call(
    videos: Tensor, texts: Tensor, scale: Tensor, options: InfonceOptions
) -> tuple[Any, ...]:
    """Arguments of the fused functions: six tensors, the diagonal offset and the workspace."""
    ids = dense_ids(*options.ids) if options.ids else (None, None)
    weights = share_weights(*options.share, torch.float32) if options.share else None
    tensors = distinct(videos.contiguous(), texts.contiguous(), scale, *ids, weights)
    workspace = options.workspace_bytes or default_workspace_bytes(videos, texts)
    return (*tensors, options.diagonal_offset, workspace)


def chosen_path(
    videos: Tensor, texts: Tensor, scale: Tensor | float, options: InfonceOptions
) -> backends.Backend:
    """The path of a checked call; raises like `backend.choose`."""
    return backends.choose(
        OP,
        (videos, texts, scale if isinstance(scale, Tensor) else None, *(options.ids or ())),
        backend=options.backend,
        unsupported=unsupported(videos),
    )


def _split_ids(
    pair_ids: Tensor | tuple[Tensor, Tensor] | None,
) -> tuple[Tensor | None, Tensor | None]:
    if isinstance(pair_ids, tuple):
        if len(pair_ids) != 2:
            raise ValueError(
                f"infonce: pair_ids must be ids or two lists of ids, (video_ids, text_ids), "
                f"got {pair_ids!r}"
            )
        return pair_ids
    return pair_ids, pair_ids


def check_block(
    name: str, videos: Tensor, texts: Tensor, scale: Tensor | float, options: InfonceOptions
) -> None:
    """Check arguments that neither path supports.

    Raises:
        TypeError: not a tensor, or an invalid dtype.
        ValueError: invalid shapes.
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
    check_scalar(name, "scale", scale)
    for side, ids, embeddings in zip(("video", "text"), options.ids or (), (videos, texts)):
        check_tensors(name, **{f"{side}_ids": ids})
        if ids.dtype != torch.int64 or ids.shape != embeddings.shape[:1]:
            raise ValueError(
                f"{name}: {side} ids must be int64 [{embeddings.shape[0]}], "
                f"got {ids.dtype} {list(ids.shape)}"
            )
