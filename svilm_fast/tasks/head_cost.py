"""What the head of a task with its own loss costs, for plans."""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.models.flops import Flops, encoded_tokens, text_flops, video_flops
from svilm_fast.objectives.config import ModelBlocks
from svilm_fast.objectives.features import Reads
from svilm_fast.objectives.flops import StepFlops


@dataclass(frozen=True)
class HeadCost:
    """What a task with its own loss computes of a clip.

    The towers are those of pre-training, called `encoder`. reads: features of the clip's video.
    sequences, length: texts of a clip and their padded length; 0: the text tower does not run.
    flops: of the head and the loss. kept: bytes that they keep for backward. kept_once: bytes that
    they keep whatever the number of clips. stored_bytes: of the stored features that are read
    instead of a clip, in a task whose model has no towers; 0: it has them.
    """

    reads: Reads
    flops: Flops
    kept: float
    sequences: int = 0
    length: int = 0
    kept_once: float = 0.0
    stored_bytes: int = 0

    def step_flops(self, config: ModelBlocks, global_batch: int) -> StepFlops:
        """Return forward and backward of the towers and the head, which counts as `objectives`."""
        head = self.flops * global_batch
        if self.stored_bytes:
            return StepFlops(Flops(), Flops(), head, Flops(), 0)
        width = config.model.embed_dim
        video = video_flops(
            config.video,
            width,
            tokens=encoded_tokens(config.video),
            groups=config.objectives.reads().uses_groups(config.video),
            outputs=self.reads.outputs("clean"),
        )
        text = Flops()
        if self.sequences:
            text = text_flops(config.text, width, self.length) * self.sequences
        return StepFlops(video * global_batch, text * global_batch, head, Flops(), 0)
