"""FLOPs of one training step, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.models.flops import Flops, encoded_tokens, product, text_flops, video_flops
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.objectives.svilm import HasBlocks, uses_groups


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a step over the global batch, by part."""

    video: Flops
    text: Flops
    objectives: Flops

    @property
    def total(self) -> int:
        """Forward and backward of all parts."""
        return (self.video + self.text + self.objectives).total


def step_flops(
    config: HasBlocks,
    *,
    global_batch: int,
    num_nouns: int,
    text_length: int | None = None,
    noun_length: int | None = None,
) -> StepFlops:
    """Forward and backward of a training step, with token dropping, grouping, captions and nouns.

    Args:
        config: the blocks model, video, text and objectives.
        global_batch: B, over all ranks.
        num_nouns: K, noun slots of a caption.
        text_length: tokens of a padded caption; None: `text.length`.
        noun_length: tokens of a padded noun prompt; None: `text.length`.
    """
    embed_dim, objectives = config.model.embed_dim, config.objectives
    video = Flops()
    for source in sorted(objectives.sources()):
        outputs = VideoOutputs(
            groups=objectives.grounding.weight > 0 and objectives.grounding.video == source,
            segments=objectives.temporal.weight > 0 and objectives.temporal.video == source,
        )
        video += video_flops(
            config.video,
            embed_dim,
            tokens=encoded_tokens(config.video),
            groups=uses_groups(config),
            outputs=outputs,
        )
    text, pairs = Flops(), Flops()
    if objectives.contrast.weight:
        text += text_flops(config.text, embed_dim, text_length or config.text.length)
        pairs += _similarities(config, global_batch, embed_dim, global_batch)
    if objectives.grounding.weight:
        noun = text_flops(config.text, embed_dim, noun_length or config.text.length)
        text += noun * num_nouns
        pairs += _similarities(
            config, global_batch * num_nouns, embed_dim, global_batch * config.video.num_groups
        )
    return StepFlops(video * global_batch, text * global_batch, pairs)


def _similarities(config: HasBlocks, rows: int, inner: int, columns: int) -> Flops:
    """Texts against videos; backward has one product for each tower that is not locked whole."""
    forward = product(rows, inner, columns).forward
    trained = (config.video.lock is not True) + (config.text.lock is not True)
    return Flops(forward, forward * trained)
