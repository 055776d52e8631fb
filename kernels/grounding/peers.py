"""The grounding loss in plain PyTorch and compiled; the same loss over MaxSim scores.

With the similarity `max`, a noun scores a video by its best group. That is the late interaction of
retrieval models (a caption is a query, a video a document), for which other packages have kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.peers import Peer, Provider, compiled, module_of

from .api import matrix_infonce
from .reference import matrix_infonce as plain_infonce
from .similarities import similarity_scores


def eager(groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor, scale: Tensor) -> Tensor:
    """All [b, b, K, G] products at once, softmax over the groups, then InfoNCE over the scores."""
    products = torch.einsum("ckd,bgd->bckg", nouns, groups).float()
    region = ((beta * products).softmax(-1) * products).sum(-1)
    weights = noun_mask / noun_mask.sum(1, keepdim=True).clamp(min=1)
    logits = scale * (region * weights).sum(-1)
    valid = noun_mask.any(1)
    count = valid.sum().clamp(min=1)
    positives = logits.diagonal()
    rows = logits.masked_fill(~valid, -torch.inf).logsumexp(1) - positives
    columns = logits.logsumexp(0) - positives
    return (rows + columns).where(valid, 0).sum() / (2 * count)


def max_loss(**inputs: Any) -> Tensor:
    """The oracle: the similarity `max` and InfoNCE over its scores, in plain PyTorch."""
    return plain_infonce(_own_scores(**inputs), inputs["scale"], valid=inputs["noun_mask"].any(1))


def own_max(**inputs: Any) -> Tensor:
    """Our similarity `max`, which works in chunks and has no kernel, and `matrix_infonce`."""
    return _loss(_own_scores(**inputs), inputs)


def _own_scores(
    groups: Tensor, nouns: Tensor, noun_mask: Tensor, beta: Tensor, scale: Tensor
) -> Tensor:
    return similarity_scores("max", groups, nouns, noun_mask, beta)


def late_interaction(**inputs: Any) -> Any:
    """late-interaction-kernels' MaxSim of captions and videos, then our `matrix_infonce`."""
    if not _kernels_run(inputs):
        return NotImplemented
    maxsim = module_of("late-interaction-kernels", "late_interaction_kernels").maxsim
    scores = maxsim(inputs["nouns"], inputs["groups"], q_mask=inputs["noun_mask"])
    return _loss(_mean_over_nouns(scores, inputs), inputs)


def flash_maxsim(**inputs: Any) -> Any:
    """flash-maxsim's scores of captions and videos, then our `matrix_infonce`.

    It takes no mask, and its kernel for small batches ignores lengths (0.3.0): absent nouns are
    cleared, so that their best group scores 0.
    """
    if not _kernels_run(inputs):
        return NotImplemented
    module = module_of("flash-maxsim", "flash_maxsim")
    train = torch.is_grad_enabled()
    score = module.flash_maxsim_batched_train if train else module.flash_maxsim_batched
    nouns = inputs["nouns"].masked_fill(~inputs["noun_mask"][:, :, None], 0)
    scores = score(nouns, inputs["groups"], shared_docs=True)
    return _loss(_mean_over_nouns(scores, inputs), inputs)


def _kernels_run(inputs: dict[str, Any]) -> bool:
    return inputs["groups"].is_cuda or interpreted()


def _mean_over_nouns(sums: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Sums over a caption's nouns [c, b] as scores [b, c]."""
    return (sums / inputs["noun_mask"].sum(1, keepdim=True).clamp(min=1)).T.contiguous()


def _loss(scores: Tensor, inputs: dict[str, Any]) -> Tensor:
    return matrix_infonce(scores, inputs["scale"], valid=inputs["noun_mask"].any(1))


def _max(call: Provider, how: str) -> Peer:
    return Peer(
        call,
        f"MaxSim (the best group of a noun) instead of softmax weights: {how}",
        max_loss,
        same_floor=False,
    )


PEERS: dict[str, Provider] = {
    "eager": eager,
    "compile": compiled(eager),
    "own_max": _max(own_max, "our similarity `max`"),
}
GPU_PEERS: dict[str, Provider] = {
    "late_interaction_max": _max(late_interaction, "late-interaction-kernels, our InfoNCE"),
    "flash_maxsim_max": _max(flash_maxsim, "flash-maxsim, our InfoNCE"),
}
