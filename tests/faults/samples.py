"""Helpers of the data rows: open small datasets, and expect refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svilm_fast.data.config import DataConfig
from svilm_fast.data.dataset import ClipDataset, prepare_tokenizer
from svilm_fast.data.samples import open_split
from tests.faults.registry import MissedError
from tests.faults.rig import Rig


class FailingRead:
    """Reads videos, and fails at one sample with an error that no reader expects."""

    def __init__(self, read: Any, index: int) -> None:
        self.read, self.index = read, index

    def __call__(self, index: int) -> bytes:
        if index == self.index:
            raise ValueError("a fault in the code")
        return self.read(index)


def refused(act: Any, *kinds: type[Exception]) -> str:
    """Return the message of the refusal, or raise MissedError where there is none."""
    try:
        act()
    except kinds as error:
        return str(error)
    raise MissedError("it is not refused")


def dataset_of(config: DataConfig, *, train: bool = False) -> ClipDataset:
    tokenizer = prepare_tokenizer(config)
    return ClipDataset(config, "train", tokenizer, train, frames=4, image_size=24)


def open_folder(folder: Path, *, train: bool = False, **settings: Any) -> ClipDataset:
    return dataset_of(DataConfig(train=str(folder), **{"workers": 0, **settings}), train=train)


def a_video(rig: Rig) -> bytes:
    """The bytes of one clip of the rendered world."""
    config = DataConfig(train=str(rig.world / "train"))
    return open_split(config, "train").read_video(0)
