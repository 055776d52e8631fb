"""The block `task` of retrieval."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from svilm_fast.core.settings import PathText
from svilm_fast.tasks.settings import TaskSettings


class RetrievalSettings(TaskSettings):
    """What is trained, and what a final evaluation reports."""

    loss: Literal["contrast", "all"] = Field(
        "contrast",
        description="contrast: only objectives of this kind train; all: every objective",
    )
    protocol: str | None = Field(
        None, description="protocol that the evaluated list must follow; null: none"
    )
    set_level: list[Literal["dsl", "qbnorm"]] = Field(
        default_factory=list,
        description="scores normalised over queries, reported apart: dual softmax over the test "
        "set, QB-Norm over a bank of training captions",
    )
    bank: PathText | None = Field(
        None, description="list or shards of the captions for qbnorm; null: data.train"
    )
    bank_videos: PathText | None = Field(
        None,
        description="list or shards of the training videos for qbnorm from video to text; null: "
        "text to video only",
    )
    rerank: int = Field(
        0,
        ge=0,
        le=10_000,
        description="best candidates of a caption that its nouns re-rank, reported apart; 0: none",
    )
