"""Several backward calls in one optimizer step under DeepSpeed, with correct reduction."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

from svilm_fast.core.trace_ranges import phase
from svilm_fast.distributed.gradient_cache import CachedStep

Reduction = Literal["coalesce", "boundary"]


def why_not_coalesce(engine: Any) -> str | None:
    """Return why gradients of this DeepSpeed engine cannot be coalesced, or None if they can."""
    stage = int(engine.zero_optimization_stage())
    if stage == 0:
        return "ZeRO 0 has no shards to reduce into"
    if not hasattr(engine, "coalesce_grad_reduction"):
        return "DeepSpeed below 0.19.1 cannot coalesce"
    if not hasattr(engine.optimizer, "_coalesce_grad_reduction"):
        # BF16_Optimizer: ZeRO 1 with bf16 parameters and fp32 accumulation.
        return f"DeepSpeed's {type(engine.optimizer).__name__} cannot coalesce"
    return None


def choose_reduction(engine: Any, asked: Literal["auto"] | Reduction) -> Reduction:
    """Return how `backward_all` reduces on this DeepSpeed engine.

    `auto` coalesces if that is possible and the parameters are fp32: coalesced gradients are
    accumulated in the dtype of the parameters, shards at a boundary in fp32.
    Raises ValueError if `asked` is `coalesce` and that is not possible.
    """
    reason = why_not_coalesce(engine)
    if asked == "coalesce" and reason is not None:
        raise ValueError(
            f"distributed.gradient_reduction=coalesce is not possible here: {reason}; use "
            "boundary or auto"
        )
    if asked == "auto":
        return "coalesce" if reason is None and not engine.bfloat16_enabled() else "boundary"
    return asked


def backward_all(engine: Any, step: CachedStep, reduction: Reduction) -> None:
    """Run backward on every scalar of a gradient cache in order; the gradients are accumulated.

    If there are global objectives, the first scalar is their loss, which only reaches their own
    parameters. The other scalars reach those of the encoders and of local objectives.

    Plain repeated `engine.backward` keeps only the last scalar's gradient under ZeRO 1 and 2.
    `coalesce` holds the full gradients of a rank until the last scalar and reduces them once;
    `boundary` lets ZeRO 2 and 3 reduce every scalar's gradients into the rank's shard (ZeRO 0 and 1
    reduce once, with the last).
    """
    if reduction == "coalesce":
        with ExitStack() as coalesced:
            coalesced.enter_context(engine.coalesce_grad_reduction())
            for scalar in step:
                engine.backward(scalar)
                del scalar  # frees the rest of its graph
            with phase("reduce"):
                coalesced.close()
        return
    for number, scalar in enumerate(step, start=1):
        engine.set_gradient_accumulation_boundary(number == len(step))
        engine.backward(scalar)
        del scalar
        of_loss = number == 1 and step.has_global_loss
        if of_loss and int(engine.zero_optimization_stage()) == 3:
            # ZeRO 3 overwrites a shard in the first backward of a step and adds to it in the
            # others. This loss reaches no encoder: theirs would add to the step before this one.
            engine.optimizer.zero_grad()
