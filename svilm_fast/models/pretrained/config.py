"""The block `weights`: pre-trained weights that a run starts from."""

from __future__ import annotations

from pydantic import Field

from svilm_fast.core.settings import PathText, Settings


class WeightsConfig(Settings):
    """Pre-trained weights (safetensors) of timm, open_clip, transformers or of a run.

    They are loaded when a run starts, before --weights-from, and not when it resumes.
    """

    video: PathText | None = Field(
        None, description="a ViT for the video tower, file or folder; null: none"
    )
    text: PathText | None = Field(
        None, description="CLIP or BERT for the text tower, file or folder; null: none"
    )
