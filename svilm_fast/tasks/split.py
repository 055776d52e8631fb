"""What evaluators of a whole split share: its clips, when they run, and a rank's part of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from svilm_fast.data.batch import ClipBatch
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.loader import build_loader
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.data.views import ONE_VIEW, Views
from svilm_fast.evaluation.embed import evaluation_mode, gather, progress_bar
from svilm_fast.tasks.base import EvaluationRequest, TaskConfig, When
from svilm_fast.tasks.clips import evaluation_clips

Found = TypeVar("Found")


class RankPart(NamedTuple):
    """The part of a split that a rank reads, and whether it shows a bar (None: on a terminal)."""

    rank: int = 0
    ranks: int = 1
    progress: bool | None = None


def read_videos(
    model: Any,
    dataset: ClipDataset,
    batch_size: int,
    part: RankPart,
    call: Callable[[ClipBatch], Sequence[Found]],
    idle: Callable[[Tensor], object],
) -> tuple[dict[str, Found], dict[str, str]]:
    """Call `call` on every batch of a rank's videos, with `model` in evaluation mode.

    call: returns one result for each video of a batch. idle: calls the model on black frames uint8
    [1, F, H, W, 3]: under ZeRO-3 all ranks must call it equally often. Returns the results by video
    and the reasons of the videos that were not decoded.
    """
    found: dict[str, Found] = {}
    most = math.ceil(len(dataset) / part.ranks)
    calls = math.ceil(most / batch_size)
    loader = build_loader(
        dataset.config, dataset, batch_size=batch_size, rank=part.rank, world_size=part.ranks
    )
    with loader, evaluation_mode(model), progress_bar(most, part.progress) as advance:
        for batch in loader:
            found |= zip(batch.ids, call(batch), strict=True)
            advance(len(batch))
            calls -= 1
        black = torch.zeros((1, *dataset.frame_shapes[0][1:]), dtype=torch.uint8)
        for _ in range(max(0, calls)):
            idle(black)
    return found, {skip.sample: skip.message for skip in loader.skips.skipped.values()}


@dataclass(frozen=True)
class SplitEvaluator:
    """Measures a model on the videos of a split. The clips are opened on first use.

    max_clips: use only the first clips; None: all.
    """

    name: ClassVar[str]
    config: TaskConfig
    tokenizer: Tokenizer
    split: str
    max_clips: int | None

    @property
    def file_name(self) -> str:
        return f"{self.name}_{self.split}"

    @property
    def when(self) -> When:
        return When(self.config.evaluation.every_steps, self.config.evaluation.at_end)

    @property
    def views(self) -> Views:
        """The views of every video."""
        return ONE_VIEW

    @cached_property
    def dataset(self) -> ClipDataset:
        return evaluation_clips(
            self.config,
            self.split,
            self.tokenizer,
            nouns=False,
            max_clips=self.max_clips,
            views=self.views,
        )

    @property
    def split_text(self) -> str:
        """The split as a protocol names it, with the part of it that is used."""
        return split_text(self.split, self.max_clips)

    def on_all_ranks(
        self,
        request: EvaluationRequest,
        read: Callable[[RankPart], tuple[dict[str, Found], dict[str, str]]],
    ) -> tuple[dict[str, Found], dict[str, str]]:
        """Join what `read` returns; in training every rank reads a part of the videos."""
        if not (request.in_training and dist.is_initialized()):
            return read(RankPart(progress=False if request.in_training else request.progress))
        found: dict[str, Found] = {}
        reasons: dict[str, str] = {}
        mine = read(RankPart(dist.get_rank(), dist.get_world_size(), progress=False))
        for part, why in gather(mine):
            found |= part
            reasons |= why
        return found, reasons


def split_text(split: str, max_clips: int | None) -> str:
    """Return the name of a split as a protocol has it; only its first clips are no whole split."""
    return split if max_clips is None else f"{split}, only the first {max_clips} clips"
