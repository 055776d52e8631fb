"""Other noun-to-group similarities in plain PyTorch, in chunks like the reference.

Each maps the dot products a_m = <n_jk, g_im> of a noun with the G groups of a video to one number
r_ijk, and S_ij = sum_k w_jk r_ijk as in README.md:
    softmax  r = sum_m p_m a_m, p = softmax_m(beta a)                        (the fused op)
    max      r = max_m a_m
    mean     r = mean_m a_m
    maxsim   late interaction both ways (FILIP, arXiv 2111.07783): S is the mean of `max`'s S and of
             mean_m max_k a_km over the caption's nouns
    linear   r = <u, sort(a)> + c: learned weights of the order statistics; `max` and `mean` are
             special cases
    mlp      r = v . gelu(W sort(a) + h) + c
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import as_scalar
from .api import OP, check_inputs, grounding_scores
from .reference import CHUNK_ELEMENTS, ChunkScore, chunked_scores

SIMILARITIES = ("softmax", "max", "mean", "maxsim", "linear", "mlp")


def _mix(similarity: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("ck,ckv->vc", weights, similarity)


def _max(dots: Tensor, weights: Tensor) -> Tensor:
    return _mix(dots.amax(-1), weights)


def _mean(dots: Tensor, weights: Tensor) -> Tensor:
    return _mix(dots.mean(-1), weights)


def _maxsim(dots: Tensor, weights: Tensor) -> Tensor:
    present = weights > 0
    best_noun = dots.masked_fill(~present[:, :, None, None], float("-inf")).amax(1).mean(-1)
    from_groups = best_noun.masked_fill(~present.any(1)[:, None], 0)
    return (_max(dots, weights) + from_groups.T) / 2


def _linear(dots: Tensor, weights: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _mix(dots.sort(-1, descending=True).values @ weight + bias, weights)


def _mlp(
    dots: Tensor,
    weights: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
) -> Tensor:
    hidden = F.gelu(F.linear(dots.sort(-1, descending=True).values, hidden_weight, hidden_bias))
    return _mix(hidden @ output_weight + output_bias, weights)


_SCORES: dict[str, ChunkScore] = {
    "max": _max,
    "mean": _mean,
    "maxsim": _maxsim,
    "linear": _linear,
    "mlp": _mlp,
}


def parameter_shapes(
    similarity: str, num_groups: int, hidden: int = 64
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the learned tensors of a similarity; empty if it has none.

    Raises:
        ValueError: an unknown similarity.
    """
    if similarity not in SIMILARITIES:
        known = ", ".join(SIMILARITIES)
        raise ValueError(f"unknown grounding similarity {similarity!r}; expected one of {known}")
    if similarity == "linear":
        return {"weight": (num_groups,), "bias": ()}
    if similarity == "mlp":
        return {
            "hidden_weight": (hidden, num_groups),
            "hidden_bias": (hidden,),
            "output_weight": (hidden,),
            "output_bias": (),
        }
    return {}


def initial_parameters(
    similarity: str, num_groups: int, hidden: int = 64, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Initial float32 values: `linear` starts as `mean`, `mlp` as `nn.Linear` does (uniform)."""
    values = {}
    for name, shape in parameter_shapes(similarity, num_groups, hidden).items():
        if similarity == "linear":
            values[name] = torch.full(shape, 1 / num_groups if name == "weight" else 0.0)
        else:
            fan_in = num_groups if name.startswith("hidden") else hidden
            bound = 1 / math.sqrt(fan_in)
            values[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return values


def similarity_scores(
    similarity: str,
    groups: Tensor,
    nouns: Tensor,
    noun_mask: Tensor,
    beta: Tensor | float,
    parameters: Mapping[str, Tensor] | None = None,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
    backend: str | None = None,
) -> Tensor:
    """Scores S [b, c] of every video with every caption for a named similarity.

    Args:
        similarity: one of `SIMILARITIES`; only `softmax` uses `beta` and has a fused path.
        groups, nouns, noun_mask, beta, backend: as in `grounding_scores`.
        parameters: the tensors named by `parameter_shapes`.
        chunk_elements: dot products (for `mlp`, hidden units) held at once.

    Raises:
        ValueError: an unknown similarity, a missing parameter or one of the wrong shape, or invalid
            inputs.
    """
    parameters = parameters or {}
    check_inputs(groups, nouns, noun_mask)
    beta = as_scalar(OP, "beta", beta, groups)
    hidden = parameters["hidden_bias"].numel() if "hidden_bias" in parameters else 1
    wanted = parameter_shapes(similarity, groups.shape[1], hidden)
    given = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    if given != wanted:
        raise ValueError(
            f"grounding similarity {similarity!r} takes parameters of shapes {wanted}, got {given}"
        )
    if similarity == "softmax":
        return grounding_scores(groups, nouns, noun_mask, beta, backend=backend)
    return chunked_scores(
        groups,
        nouns,
        noun_mask,
        _SCORES[similarity],
        [parameters[name] for name in wanted],
        chunk_elements=chunk_elements,
        expansion=max(1, hidden // groups.shape[1]) if similarity == "mlp" else 1,
    )
