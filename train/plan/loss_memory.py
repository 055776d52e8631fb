"""Memory of the features and of the losses over them."""

from __future__ import annotations

from svilm_fast.objectives.base import Scope
from svilm_fast.train.plan.workload import Workload

FP32 = 4


def feature_bytes(workload: Workload) -> float:
    """Return the bytes of the fp32 features that the global objectives read of the local batch."""
    return float(FP32 * workload.local_batch * sum(vectors(workload).values()))


def vectors(workload: Workload) -> dict[str, int]:
    """Return the fp32 numbers of a pair, for each feature that a global objective reads."""
    if workload.head is not None:
        return {}  # no gradient cache
    config, reads = workload.config, workload.config.objectives.reads("global")
    width = config.model.embed_dim
    sizes = {
        "video": width,
        "groups": workload.groups * width,
        "segments": config.video.num_segments * width,
        "tokens": workload.tokens * config.video.width,
        "pixels": workload.tokens * config.video.tubelet * config.video.patch**2 * 3,
    }
    found = {f"{view}.{feature}": sizes[feature] for view, feature in sorted(reads.video)}
    if reads.texts:
        found["texts"] = width
    if reads.nouns:
        found["nouns"] = workload.nouns * width
    return found


def loss_bytes(workload: Workload, workspace_bytes: int | None, scope: Scope, pairs: int) -> float:
    """Return the peak bytes of the objectives of a scope, without the features.

    The objectives run one after another: their graphs (`Cost.kept`) add up until backward, and only
    one workspace exists at a time. pairs: what a local objective sees at once.
    """
    costs = [
        found.cost for found in workload.costs(workspace_bytes, pairs=pairs) if found.scope == scope
    ]
    return sum(cost.kept for cost in costs) + max((cost.workspace for cost in costs), default=0.0)
