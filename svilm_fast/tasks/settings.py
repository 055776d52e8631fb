"""The settings that tasks read: the block `task` of a run and the block `evaluation`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from svilm_fast.core.settings import Clips, Settings, Steps

DEFAULT_TASK = "pretrain"


class TaskSettings(Settings):
    """The block `task`; a subclass adds the settings of its task.

    own_loss: the task has its own head and loss. Then the block `objectives` is not read, and both
    towers may be frozen.
    """

    own_loss: ClassVar[bool] = False

    name: str = Field(
        DEFAULT_TASK, description="the task: pretrain, or the name of an installed plug-in"
    )


class EvaluationConfig(Settings):
    """Evaluation on held-out clips during the run and at its end."""

    every_steps: Steps = Field(
        0,
        description="steps between evaluations; 0: only at the end, with at_end=false never",
    )
    at_end: bool = Field(True, description="evaluate after the last step")
    split: Literal["train", "val", "test"] = Field("val", description="split used during the run")
    max_clips: Clips | None = Field(
        None, description="use only the first clips of the split; null: all"
    )
    batch_size: int = Field(32, ge=1, le=2**20, description="clips embedded at once")
    captions: Literal["coarse", "fine", "fused"] | None = Field(
        None, description="grain of the captions; null: as in training"
    )
