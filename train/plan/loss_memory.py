"""Bytes of the embeddings and of the losses over them."""

from __future__ import annotations

from svilm_fast.kernels.infonce.fused.layout import DEFAULT_ROWS
from svilm_fast.kernels.slices import MAX_SLICES, SLICE_BYTES
from svilm_fast.train.plan.workload import Workload

FP32 = 4
# Defaults of the ops where nothing is said: kernels/{infonce,grounding}.
CONTRAST_WORKSPACE = {True: 512 << 20, False: 64 << 20}
GROUNDING_WORKSPACE = {True: 256 << 20, False: 64 << 20}


def embedding_bytes(workload: Workload) -> float:
    """fp32 embeddings of the local batch: videos, captions, groups, nouns, segments."""
    return float(FP32 * workload.local_batch * sum(vectors(workload).values()))


def vectors(workload: Workload) -> dict[str, int]:
    """fp32 numbers of a pair, by embedding that an active objective reads."""
    config, width = workload.config, workload.config.model.embed_dim
    found: dict[str, int] = {}
    if config.objectives.contrast.weight:
        found |= {"videos": width, "texts": width}
    if config.objectives.grounding.weight:
        found |= {"groups": workload.groups * width, "nouns": workload.nouns * width}
    if config.objectives.temporal.weight:
        found["segments"] = config.video.num_segments * width
    return found


def loss_bytes(workload: Workload, workspace_bytes: int | None) -> float:
    """The most that the objectives hold beside the embeddings: gathered rows, matrices, workspaces.

    The objectives run one after another, but their graphs stay until backward.
    """
    return gathered_bytes(workload) + score_bytes(workload) + workspace(workload, workspace_bytes)


def gathered_bytes(workload: Workload) -> float:
    """Texts and nouns of all ranks, and their gradient before it is scattered."""
    if workload.world_size == 1:
        return 0.0
    width, pairs = vectors(workload), workload.config.training.global_batch
    return float(2 * FP32 * pairs * (width.get("texts", 0) + width.get("nouns", 0)))


def score_bytes(workload: Workload) -> float:
    """Grounding's scores [b, B] and what their symmetric InfoNCE keeps and makes of them.

    Over ranks: the scores, their slices before they are joined, the logits and a temporary in
    fp32, and a mask. One rank: the fused op makes two matrices, the reference six and a mask.
    Other similarities and vectors of any length take the reference on a GPU too.
    """
    if not workload.nouns:
        return 0.0
    pairs = workload.local_batch * workload.config.training.global_batch
    if workload.world_size > 1:
        return float(pairs * (4 * FP32 + 1))
    return float(pairs * (2 * FP32 if _fused_grounding(workload) else 6 * FP32 + 1))


def _fused_grounding(workload: Workload) -> bool:
    config = workload.config
    unit = config.video.unit_groups and config.text.unit_nouns
    return workload.on_gpu and unit and config.objectives.grounding.similarity == "softmax"


def slices(workload: Workload, width: int) -> int:
    """Parts in which `kernels.slices` gathers fp32 rows of `width` numbers a pair."""
    if workload.world_size == 1:
        return 1
    size = FP32 * width * workload.config.training.global_batch
    return max(1, min(MAX_SLICES, size // SLICE_BYTES, workload.local_batch))


def workspace(workload: Workload, given: int | None) -> float:
    """Temporary memory that the ops bound; the larger one, because they run in turn."""
    local, pairs = workload.local_batch, workload.config.training.global_batch
    objectives, sizes = workload.config.objectives, [0.0]
    if objectives.contrast.weight:
        columns = pairs // slices(workload, vectors(workload)["texts"])
        rows = FP32 * min(DEFAULT_ROWS, local) * columns if workload.on_gpu else 0
        bound = given or max(CONTRAST_WORKSPACE[workload.on_gpu], rows)
        sizes.append(min(bound, 4 * FP32 * local * pairs))
    if workload.nouns:
        bound = given or GROUNDING_WORKSPACE[_fused_grounding(workload)]
        dots = local * pairs * workload.groups * workload.nouns
        sizes.append(min(bound, 4 * FP32 * dots))
    return float(max(sizes))
