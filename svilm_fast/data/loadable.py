"""What the loader, the training session and their checks read of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from svilm_fast.data.skips import SkipReport


class LoadableDataset(Protocol):
    """n samples that are loaded one by one and collated to a `SampleBatch`.

    `ClipDataset` is one of clips; a task may bring another one. Every random number of a sample
    must come from `draws`, which makes it a function of (seed, epoch, key): then the order, a
    resume, and any number of ranks and workers repeat it.
    """

    @property
    def train(self) -> bool:
        """Whether epochs are shuffled and endless, and samples are drawn at random."""

    @property
    def split(self) -> str:
        """Name of the split in messages: train, val or test."""

    @property
    def ids(self) -> Sequence[str]:
        """Names of the samples."""

    @property
    def keys(self) -> np.ndarray:
        """`sample_key` of the ids, int64 [n]."""

    @property
    def fingerprint(self) -> str:
        """Changes when the samples or their order change; a resume compares it."""

    @property
    def contents(self) -> Any:
        """Changes when a sample's content is replaced; a resume warns then."""

    @property
    def report(self) -> SkipReport:
        """What was refused while the samples were listed."""

    @property
    def frame_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of a sample's uint8 tensors that `clip` writes into shared memory; may be none."""

    def __len__(self) -> int: ...

    def shard_samples(self) -> np.ndarray:
        """Samples of each shard, int64 [shards]."""

    def draws(self, indices: Sequence[int], seed: int, epoch: int) -> Sequence[Any]:
        """The random numbers of samples in an epoch."""

    def clip(self, index: int, draw: Any, out: Sequence[Tensor] | None = None) -> Any:
        """Load a sample; `draw` None: as in evaluation. It has `notes`. Raises DataError."""

    def collate(self, clips: Sequence[Any], frames: Sequence[Tensor] | None = None) -> Any:
        """A batch of loaded samples, a `SampleBatch` with `ids`."""
