"""Public functions of grounding: they check the arguments and choose the path."""

from __future__ import annotations

import torch
from torch import Tensor

from svilm_fast.kernels.backend import Backend, choose
from svilm_fast.kernels.checks import (
    FLOATS,
    as_scalar,
    check_tensors,
    check_width,
)
from svilm_fast.kernels.operators import anchor, distinct

from . import reference
from .fused.layout import unsupported
from .options import GroundingOptions

OP = "grounding"


def check_inputs(groups: Tensor, nouns: Tensor, noun_mask: Tensor) -> None:
    """Raise a TypeError or ValueError for the first argument of a wrong type, shape or dtype."""
    check_tensors(OP, groups=groups, nouns=nouns, noun_mask=noun_mask)
    for name, tensor in (("groups", groups), ("nouns", nouns)):
        if tensor.dim() != 3:
            raise ValueError(f"grounding: {name} must be 3-dimensional, got {list(tensor.shape)}")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"grounding: {name} must be floating point, got {tensor.dtype}")
    if groups.shape[2] != nouns.shape[2]:
        raise ValueError(
            f"grounding: groups and nouns must have the same last size (embed_dim), "
            f"got {groups.shape[2]} and {nouns.shape[2]}"
        )
    check_width(OP, groups=groups, nouns=nouns)
    if groups.shape[1] == 0 or nouns.shape[1] == 0:
        raise ValueError(
            "grounding: need at least one group and one noun slot, got groups "
            f"{list(groups.shape)} and nouns {list(nouns.shape)}; set noun_mask to False for "
            "absent nouns"
        )
    if noun_mask.dtype != torch.bool or noun_mask.shape != nouns.shape[:2]:
        raise ValueError(
            f"grounding: noun_mask must be bool {list(nouns.shape[:2])}, "
            f"got {noun_mask.dtype} {list(noun_mask.shape)}"
        )


def chosen_path(
    groups: Tensor, nouns: Tensor, noun_mask: Tensor, *scalars: Tensor, backend: str | None
) -> Backend:
    """The path of a checked call; raises like `backend.choose`."""
    tensors = (groups, nouns, noun_mask, *scalars)
    reason = unsupported(groups, nouns, *scalars)
    return choose(OP, tensors, backend=backend, unsupported=reason)


def grounding_scores(
    groups: Tensor,
    nouns: Tensor,
    noun_mask: Tensor,
    beta: Tensor | float,
    *,
    workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax-weighted similarity of the nouns of every caption with the groups of every video.

    S_ij = sum_k w_jk sum_m p_m a_m with a_m = <n_jk, g_im>, p = softmax_m(beta a) and
    w_jk = noun_mask_jk / sum_k noun_mask_jk (S-ViLM, arXiv 2303.16341, inter-clip spatial
    grounding; beta = 1 there). A caption without nouns scores 0 with every video.

    Args:
        groups: [b, G, D], unit vectors.
        nouns: [c, K, D], unit vectors where `noun_mask` is True, any value elsewhere.
        noun_mask: bool [c, K].
        beta: 0-dim tensor or number, clamped to [0, 60]. Outside this range its gradient passes
            only if a descent step leads back into the range.
        workspace_bytes: bound of the temporary memory, at least one tile; None takes the default
            of the path (256 MiB in backward fused, 64 MiB reference).
        backend: `auto`, `fused` or `reference`; None takes the setting of `kernels.backend`.

    Returns:
        [b, c] float32, or float64 if an input is float64.

    Raises:
        ValueError: a wrong shape, dtype or workspace.
        TypeError: `beta` or `workspace_bytes` is not a number.
        RuntimeError: `fused` was requested and cannot run.
    """
    check_inputs(groups, nouns, noun_mask)
    beta = as_scalar(OP, "beta", beta, groups)
    options = GroundingOptions.checked(OP, workspace_bytes, backend)
    return scores_of(groups, nouns, noun_mask, beta, options)


def scores_of(
    groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor, options: GroundingOptions
) -> Tensor:
    """`grounding_scores` without its checks."""
    tensors = (groups, nouns, noun_mask, beta)
    if chosen_path(*tensors, backend=options.backend) == "reference":
        return reference.grounding_scores(*tensors, chunk_elements=options.chunk_elements)
    from .fused.function import GroundingScores

    anchored = anchor(groups, nouns)
    return GroundingScores.apply(*distinct(*tensors), options.fused_workspace, anchored)


def matrix_infonce(
    scores: Tensor,
    scale: Tensor | float,
    *,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Symmetric InfoNCE over a square matrix of scores with the pairs on its diagonal.

    loss = 1/(2N) (sum over valid i of [lse over valid j of s S_ij] - s S_ii
                   + sum over valid j of [lse over all i of s S_ij] - s S_jj).

    In float32 the absolute error of a logit is about 2^-23 s max|S|: subtract a large common offset
    of the scores first.

    Args:
        scores: [n, n], rows are videos, columns are captions.
        scale: s, 0-dim tensor or number.
        valid: bool [n], True for the N captions that are used; None uses all.
        backend: as in `grounding_scores`.

    Returns:
        0-dim float32 (float64 for float64 inputs); a graph-connected 0 if N = 0.

    Raises:
        ValueError: a wrong shape or dtype.
        TypeError: `scale` is not a number, or `scores` is not a tensor.
        RuntimeError: `fused` was requested and cannot run.
    """
    check_tensors("matrix_infonce", scores=scores)
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or scores.dtype not in FLOATS:
        raise ValueError(
            f"matrix_infonce: scores must be a square float matrix, "
            f"got {scores.dtype} {list(scores.shape)}"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != scores.shape[:1]):
        raise ValueError(
            f"matrix_infonce: valid must be bool [{scores.shape[0]}], "
            f"got {valid.dtype} {list(valid.shape)}"
        )
    scale = as_scalar(OP, "scale", scale, scores)
    reason = None
    if not scores.numel():
        reason = "the matrix is empty"
    elif scores.dtype != torch.float32 or scale.dtype == torch.float64:
        reason = f"scores are {scores.dtype} and the scale {scale.dtype}, kernels take float32"
    path = choose("matrix_infonce", (scores, scale, valid), backend=backend, unsupported=reason)
    if path == "fused":
        from .fused.function import MatrixInfoNCE

        return MatrixInfoNCE.apply(*distinct(scores, scale, valid))
    return reference.matrix_infonce(scores, scale, valid=valid)


def grounding_loss(
    groups: Tensor,
    nouns: Tensor,
    noun_mask: Tensor,
    beta: Tensor | float,
    scale: Tensor | float,
    *,
    workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Inter-clip spatial grounding: `matrix_infonce` over `grounding_scores` of one batch.

    Args:
        groups: [b, G, D], unit vectors.
        nouns: [b, K, D]; caption i belongs to video i.
        noun_mask: bool [b, K]; captions without a noun are not valid.
        beta, workspace_bytes, backend: as in `grounding_scores`.
        scale: 0-dim.

    Returns:
        0-dim float32 (float64 for float64 inputs).

    Raises:
        ValueError: a wrong shape, dtype or workspace.
        TypeError: `beta`, `scale` or `workspace_bytes` is not a number.
        RuntimeError: `fused` was requested and cannot run.
    """
    check_inputs(groups, nouns, noun_mask)
    beta = as_scalar(OP, "beta", beta, groups)
    scale = as_scalar(OP, "scale", scale, groups)
    options = GroundingOptions.checked(OP, workspace_bytes, backend)
    if groups.shape[0] != nouns.shape[0]:
        raise ValueError(
            f"grounding_loss: the numbers of captions and videos must be equal, "
            f"got {nouns.shape[0]} captions and {groups.shape[0]} videos"
        )
    return loss_of(groups, nouns, noun_mask, beta, scale, options)


def loss_of(
    groups: Tensor,
    nouns: Tensor,
    noun_mask: Tensor,
    beta: Tensor,
    scale: Tensor,
    options: GroundingOptions,
) -> Tensor:
    """`grounding_loss` without its checks."""
    tensors = (groups, nouns, noun_mask, beta, scale)
    if chosen_path(*tensors, backend=options.backend) == "reference":
        return reference.grounding_loss(*tensors, chunk_elements=options.chunk_elements)
    from .fused.function import GroundingLoss

    anchored = anchor(groups, nouns)
    return GroundingLoss.apply(*distinct(*tensors), options.fused_workspace, anchored)
