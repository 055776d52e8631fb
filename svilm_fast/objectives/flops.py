"""FLOPs of one training step, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.models.flops import Flops, encoded_tokens, text_flops, video_flops
from svilm_fast.models.teacher import TEACHER_OUTPUTS
from svilm_fast.objectives.base import Scope
from svilm_fast.objectives.config import ModelBlocks
from svilm_fast.objectives.cost import Shapes


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a step over the global batch, by part.

    local: the part of `objectives` that runs with the encoders. recomputed: what the objectives'
    backward recomputes, which the total excludes.
    """

    video: Flops
    text: Flops
    objectives: Flops
    local: Flops
    recomputed: int

    @property
    def total(self) -> int:
        """Forward and backward of all parts."""
        return (self.video + self.text + self.objectives).total


def step_flops(
    config: ModelBlocks,
    *,
    global_batch: int,
    num_nouns: int,
    text_length: int | None = None,
    noun_length: int | None = None,
    stored_videos: bool = False,
) -> StepFlops:
    """Forward and backward of a training step, with token dropping, grouping, captions and nouns.

    Args:
        config: the blocks model, video, text and objectives.
        global_batch: B, over all ranks.
        num_nouns: K, noun slots of a caption.
        text_length: tokens of a padded caption; None: `text.length`.
        noun_length: tokens of a padded noun prompt; None: `text.length`.
        stored_videos: embeddings of the videos are read, not computed.
    """
    embed_dim, reads = config.model.embed_dim, config.objectives.reads()
    video, text = Flops(), Flops()
    for view in () if stored_videos else sorted(reads.views):
        shown = reads.shown(view, config.video)
        one = video_flops(
            shown,
            embed_dim,
            tokens=encoded_tokens(shown),
            groups=reads.uses_groups(config.video),
            outputs=reads.outputs(view),
        )
        video += one * reads.clips(view)
    if reads.teacher:
        taught = video_flops(
            config.video,
            embed_dim,
            tokens=encoded_tokens(config.video),
            groups=reads.uses_groups(config.video),
            outputs=TEACHER_OUTPUTS,
        )
        video += taught.locked()
    if reads.texts:
        text += text_flops(config.text, embed_dim, text_length or config.text.length)
    if reads.nouns:
        noun = text_flops(config.text, embed_dim, noun_length or config.text.length)
        text += noun * num_nouns
    shapes = shapes_of(config, global_batch=global_batch, nouns=num_nouns)
    parts: dict[Scope, Flops] = {"local": Flops(), "global": Flops()}
    recomputed = 0
    for objective in config.objectives.active().values():
        cost = objective.cost(shapes)
        parts[objective.scope] += cost.flops
        recomputed += cost.recomputed
    return StepFlops(
        video * global_batch,
        text * global_batch,
        parts["global"] + parts["local"],
        parts["local"],
        recomputed,
    )


def shapes_of(
    config: ModelBlocks,
    *,
    global_batch: int,
    nouns: int,
    local_batch: int | None = None,
    world_size: int = 1,
    on_gpu: bool = False,
    workspace_bytes: int | None = None,
    masked_sources: bool = False,
) -> Shapes:
    """Return the sizes that determine the costs of the objectives.

    local_batch: pairs that an objective sees at once; None: those of the global batch.
    """
    reads = config.objectives.reads()
    crops = encoded_tokens(reads.shown("crops", config.video)) if reads.crops else 0
    return Shapes(
        global_batch=global_batch,
        local_batch=global_batch if local_batch is None else local_batch,
        world_size=world_size,
        embed_dim=config.model.embed_dim,
        width=config.video.width,
        tokens=encoded_tokens(config.video),
        groups=config.video.num_groups,
        segments=config.video.num_segments,
        nouns=nouns,
        trained_towers=(config.video.lock is not True) + (config.text.lock is not True),
        unit=config.video.unit_groups and config.text.unit_nouns,
        on_gpu=on_gpu,
        workspace_bytes=workspace_bytes,
        masked_sources=masked_sources,
        crop_tokens=crops * reads.clips("crops"),
        patch_numbers=config.video.tubelet * config.video.patch**2 * 3,
    )
