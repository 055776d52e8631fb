"""Retrieval as a task: pre-training's model and data, trained by the contrast objective."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from svilm_fast.core.errors import ConfigError
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.evaluation.protocols import PROTOCOLS, check_protocol
from svilm_fast.models.tubelet_embedding import MASK_TOKEN
from svilm_fast.tasks.base import InitialWeights, TaskConfig
from svilm_fast.tasks.clips import check_split
from svilm_fast.tasks.pretrain.retrieval import RetrievalEvaluator, RetrievalExtras
from svilm_fast.tasks.pretrain.task import Pretraining
from svilm_fast.tasks.retrieval.settings import RetrievalSettings
from svilm_fast.tasks.settings import TaskSettings

KIND = "contrast"  # the objectives of `task.loss=contrast`


class Retrieval(Pretraining):
    """Pre-training's model on videos with captions; scales and heads of objectives may be new."""

    Settings: ClassVar[type[TaskSettings]] = RetrievalSettings

    def __init__(self, config: TaskConfig) -> None:
        settings = cast(RetrievalSettings, config.task)
        if settings.protocol is not None and settings.protocol not in PROTOCOLS:
            raise ConfigError(
                f"task.protocol: unknown protocol {settings.protocol!r}: choose one of "
                f"{', '.join(PROTOCOLS)}"
            )
        self.settings = settings
        super().__init__(config if settings.loss == "all" else contrast_only(config))

    def evaluators(
        self, tokenizer: Tokenizer, split: str, max_clips: int | None
    ) -> Sequence[RetrievalEvaluator]:
        check_split(self.config, split)
        chosen = self.settings
        extras = RetrievalExtras(
            chosen.protocol,
            tuple(chosen.set_level),
            chosen.bank,
            chosen.bank_videos,
            chosen.rerank,
        )
        evaluator = RetrievalEvaluator(self.config, tokenizer, split, max_clips, extras=extras)
        if chosen.protocol is not None:  # a wrong list is an error before training, not after it
            check_protocol(chosen.protocol, evaluator.dataset)
        return [evaluator]

    def initial_weights(self) -> InitialWeights:
        """Return the objectives' own parameters (scales, sharpness, heads), and masking's."""
        own = ("objectives.*", MASK_TOKEN)
        return InitialWeights(own, own)


def contrast_only(config: TaskConfig) -> TaskConfig:
    """Return a configuration whose other objectives have weight 0, with the same encoders.

    Group tokens take part in the attention of the video encoder. If an objective reads them, the
    encoder keeps them, so that pre-trained weights mean the same. Raises ConfigError if no contrast
    objective has a weight.
    """
    objectives = config.objectives
    active = objectives.active()
    if not any(each.kind == KIND for each in active.values()):
        raise ConfigError(
            "task.loss=contrast: no objective of this kind has a weight: set "
            "objectives.contrast.weight above 0, or task.loss=all"
        )
    # `model_copy` shares the members that are not updated; none is changed in place.
    others = {name: each for name, each in active.items() if each.kind != KIND}
    off = {name: each.model_copy(update={"weight": 0.0}) for name, each in others.items()}
    reduced: Any = copy.copy(config)
    reduced.objectives = objectives.model_copy(update=off)
    if objectives.reads().uses_groups(config.video):
        grouping = config.video.grouping.model_copy(update={"in_encoder": "always"})
        reduced.video = config.video.model_copy(update={"grouping": grouping})
    return reduced
