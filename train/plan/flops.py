"""FLOPs of a configured step."""

from __future__ import annotations

from svilm_fast.objectives.flops import StepFlops, step_flops
from svilm_fast.train.config.schema import RunConfig


def flops_of_step(config: RunConfig) -> StepFlops:
    """Return forward and backward of the global batch, with captions and nouns padded as loaded."""
    return step_flops(
        config,
        global_batch=config.training.global_batch,
        num_nouns=config.data.nouns.per_caption,
        text_length=config.data.tokenizer.length,
        noun_length=config.data.tokenizer.noun_length,
    )
