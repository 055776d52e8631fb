"""The model's inputs: clips, captions and nouns of a local batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from svilm_fast.core.philox import StepSeeds
from svilm_fast.data.palettes.frames import PaletteFrames


@dataclass(frozen=True)
class ModelInputs:
    """Tensors of b samples; tensors that no active objective reads may be None.

    Attributes:
        frames: uint8 [b, F, H, W, 3], the clips as they are; or compressed clips of that shape.
        blended: the clips after cut-and-paste, as `frames`.
        paste_mask: bool [b, T], true where a segment of `blended` shows the sample's own clip.
        pair_ids: int64 [b], equal for samples whose clips were blended with each other.
        text_tokens: int64 [b, S].
        text_mask: bool [b, S], real tokens.
        noun_tokens: int64 [b, K, Sn], prompted nouns.
        noun_token_mask: bool [b, K, Sn], real tokens.
        noun_mask: bool [b, K], nouns that the caption has.
        source_ids: int64 [b], equal for clips of one source video, which are no negatives.
        teacher_videos, teacher_texts: float32 [b, Dt], a teacher's stored embeddings.
        video_embeddings: float32 [b, D], stored embeddings of the clips, instead of `frames`.
        crops: uint8 [b, V, f, h, w, 3], small views of the clips.
        seeds: randomness of the step; None switches every noise off.
    """

    text_tokens: Tensor
    text_mask: Tensor
    frames: Tensor | PaletteFrames | None = None
    blended: Tensor | PaletteFrames | None = None
    paste_mask: Tensor | None = None
    pair_ids: Tensor | None = None
    noun_tokens: Tensor | None = None
    noun_token_mask: Tensor | None = None
    noun_mask: Tensor | None = None
    source_ids: Tensor | None = None
    teacher_videos: Tensor | None = None
    teacher_texts: Tensor | None = None
    video_embeddings: Tensor | None = None
    crops: Tensor | None = None
    seeds: StepSeeds | None = None

    def __len__(self) -> int:
        """b."""
        return len(self.text_tokens)

    def rows(self, rows: slice) -> ModelInputs:
        """Return the inputs of some samples, as views."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        seeds = values.pop("seeds")
        if seeds is not None:
            seeds = StepSeeds(seeds.run_seed, seeds.step, seeds.keys[rows])
        taken: dict[str, Any] = {
            name: None if value is None else value[rows] for name, value in values.items()
        }
        return ModelInputs(**taken, seeds=seeds)

    def split(self, size: int) -> list[ModelInputs]:
        """Split into consecutive parts of `size` samples, as views; the last may be smaller.

        Raises ValueError for a size below 1.
        """
        if size < 1:
            raise ValueError(f"a micro-batch needs at least 1 sample, got {size}")
        return [self.rows(slice(start, start + size)) for start in range(0, len(self), size)]
