"""The block `task` of action recognition."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from svilm_fast.tasks.settings import TaskSettings

Features = Literal["embedding", "pooled"]


class ActionSettings(TaskSettings):
    """Labels, head, loss and test views."""

    own_loss: ClassVar[bool] = True

    label_field: str = Field(
        "label", min_length=1, max_length=100, description="field of a sample's JSON with its class"
    )
    features: Features = Field(
        "pooled",
        description="input of the linear head: the pooled tokens of the video tower, or their "
        "embedding in the space shared with text",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the cross-entropy")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the head's input, in training")
    clips: int = Field(1, ge=1, le=1000, description="clips of a video in evaluation")
    crops: Literal[1, 3] = Field(1, description="crops of a clip in evaluation: 1 (centre) or 3")
    spread: Literal["interleaved", "consecutive"] = Field(
        "interleaved",
        description="frames of the clips in evaluation: each clip spans the whole video, or a "
        "part of it",
    )
