"""The block `task` of question answering."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from svilm_fast.core.settings import PathText
from svilm_fast.tasks.settings import TaskSettings


class QASettings(TaskSettings):
    """Vocabulary of answers, head, and how many questions a training clip is asked."""

    own_loss: ClassVar[bool] = True

    answers: int | None = Field(
        None,
        ge=2,
        le=2**20,
        description="most frequent training answers in the vocabulary; null: all",
    )
    answers_file: PathText | None = Field(
        None,
        description="a given vocabulary: JSON, a list of answers or {answer: index}; null: made "
        "from the training answers",
    )
    questions_per_clip: int = Field(
        4, ge=1, le=1024, description="questions drawn for a clip in a training step"
    )
    layers: int = Field(2, ge=2, le=4, description="layers in which questions attend to the video")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the head's hidden units, in training")
