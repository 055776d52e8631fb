"""Videos of a list that cannot be ranked: which they are, and their captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from svilm_fast.data.captions import pick_captions, row_record
from svilm_fast.data.dataset import ClipDataset
from svilm_fast.data.errors import DataError
from svilm_fast.data.lists import rows_of_samples
from svilm_fast.data.segments import segment_of_row
from svilm_fast.evaluation.embed import CaptionTable


@dataclass
class MissingVideo:
    """Why a video is missing, and its captions; none where they are not known."""

    reason: str
    captions: list[str] = field(default_factory=list)

    @property
    def queries(self) -> int:
        """Its captions that are queries: one where they are not known."""
        return max(1, len(self.captions))


def refused_videos(dataset: ClipDataset) -> dict[str, MissingVideo]:
    """The videos that were refused when the data set was opened, by the name of their first row.

    The rows of a list that name one video, or one segment of it, are one. Captions are those of
    the list; those inside a damaged shard are not known.
    """
    reasons = {skip.sample: skip.message for skip in dataset.table.rejected}
    found: dict[str, MissingVideo] = {}
    names: dict[object, str] = {}
    sources = getattr(dataset.config, dataset.split)
    for name, row, place in rows_of_samples(sources, reasons):
        try:
            segment = segment_of_row(row.extra, place)
            key: object = (row.video, row.folder, segment)
        except DataError:
            key = name
        first = names.setdefault(key, name)
        video = found.setdefault(first, MissingVideo(reasons.pop(name, "")))
        try:
            grain = dataset.config.captions
            video.captions += pick_captions(row_record(row), grain, place).texts
        except DataError:
            continue  # a row without a caption was refused for that
    return found | {name: MissingVideo(reason) for name, reason in reasons.items()}


def missing_videos(
    found: Sequence[str],
    captions: CaptionTable,
    skipped: Mapping[str, str],
    refused: Mapping[str, MissingVideo],
) -> dict[str, MissingVideo]:
    """The videos that were not embedded.

    found: ids of the embedded videos. skipped: reasons by sample of those that could not be loaded.
    refused: those that were refused before the data set listed its captions.
    """
    present = set(found)
    reasons = {captions.video.get(name, name): reason for name, reason in skipped.items()}
    missing = {
        name: MissingVideo(
            reasons.get(name, "not delivered by the loader"), [captions.texts[row] for row in rows]
        )
        for name, rows in captions.rows.items()
        if name not in present
    }
    return missing | dict(refused)
