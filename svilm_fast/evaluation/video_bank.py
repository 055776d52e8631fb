"""The bank of training videos that QB-Norm normalises with from video to text."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from typing import Any

from svilm_fast.core.errors import UserError
from svilm_fast.core.text import counted
from svilm_fast.data.dataset import ClipDataset

log = logging.getLogger(__name__)

MOST_VIDEOS = 5_000
"""Videos of a bank, all of which are decoded; of more, so many at equal distances are taken."""


@dataclass(frozen=True)
class VideoBank:
    """Videos of a training split. name: the split's files. total: videos that it has."""

    name: str
    dataset: ClipDataset
    total: int

    def check(self, tested: ClipDataset) -> int:
        """Return how many of its files are test videos too. Raises UserError if all are."""
        test = {(sample.video, sample.segment) for sample in tested.table}
        table = self.dataset.table
        shared = sum((sample.video, sample.segment) in test for sample in table)
        if shared == len(table):
            raise UserError(
                f"the bank of QB-Norm, {self.name}, holds only videos of the test set: give the "
                "videos of the training split"
            )
        if shared:
            videos = counted(shared, "video")
            log.warning("QB-Norm: its bank contains %s of the test set", videos)
        return shared

    def facts(self, embedded: list[str], tested: ClipDataset) -> dict[str, Any]:
        """What is stored of the bank; embedded: the ids of its videos that could be decoded."""
        digest = hashlib.sha256("\n".join(sorted(embedded)).encode())
        return {
            "source": self.name,
            "videos": len(embedded),
            "not_decoded": len(self.dataset.table) - len(embedded),
            "of": self.total,
            "sha256": digest.hexdigest(),
            "test_videos_among_them": self.check(tested),
        }


def video_bank_line(facts: dict[str, Any]) -> str:
    """The facts of a bank as a line of the printed protocol."""
    some = f"{facts['videos']:,} of " if facts["videos"] < facts["of"] else ""
    line = (
        f"QB-Norm bank of videos: {some}{counted(facts['of'], 'video')} of {facts['source']}, "
        f"SHA-256 of their names {facts['sha256'][:12]}; {facts['test_videos_among_them']:,} of "
        "them are in the test set"
    )
    missing = facts["not_decoded"]
    return line + (f"; {missing:,} could not be decoded" if missing else "")


def open_video_bank(tested: ClipDataset, source: str, most: int = MOST_VIDEOS) -> VideoBank:
    """Open training videos as those of the evaluated data set are; a list's are in `data.videos`.

    Raises UserError for a bank of test videos alone, DataError where there are none.
    """
    config = tested.config.model_copy(update={"train": source, "captions": "none", "select": None})
    opened = ClipDataset(
        config,
        "train",
        tested.tokenizer,
        frames=tested.frames,
        image_size=tested.image_size,
        metadata=False,
        nouns=False,
    )
    # Several samples may be of one video.
    first: dict[Any, int] = {}
    for place, sample in enumerate(opened.table):
        first.setdefault((sample.video, sample.segment), place)
    places = list(first.values())
    total, wanted = len(places), min(most, len(places))
    opened.table = opened.table.select([places[n * total // wanted] for n in range(wanted)])
    bank = VideoBank(os.path.basename(source.rstrip("/")), opened, total)
    bank.check(tested)
    return bank
