"""The samples of a split: a view of an index for one grain of captions."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from svilm_fast.data.annotations import ANNOTATIONS, Annotations, Label, from_column
from svilm_fast.data.config import DataConfig
from svilm_fast.data.errors import DataError, MissingFileError
from svilm_fast.data.index.columns import damaged
from svilm_fast.data.index.schema import caption_codes, mixed_weights
from svilm_fast.data.index.sources import read_sources
from svilm_fast.data.index.store import open_index
from svilm_fast.data.lists import VideoFolder
from svilm_fast.data.sample_facts import SampleFacts
from svilm_fast.data.sample_files import StoredFile
from svilm_fast.data.sample_rows import Shuffle
from svilm_fast.data.segments import Segment
from svilm_fast.data.selection import open_selection

_RELEASED_EVERY = 1 << 14


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip with its captions; `nouns` has a tuple per caption, or None where none are known.

    `segment` is the part of the video that the clip is, in seconds; None: all of it.
    """

    id: str
    captions: tuple[str, ...]
    nouns: tuple[tuple[str, ...] | None, ...]
    video: StoredFile
    segment: Segment | None = None


class SampleTable(SampleFacts, Sequence[Sample]):
    """Samples in a fixed order, with what was refused while listing them.

    It holds no sample: every question is answered from the columns of an index, which processes
    share. Ids that occur again get `~2`, `~3` and so on.

    Args:
        index: of all sources of the split.
        roots: what the names of shards begin with, or the paths of videos: (first place, text).
        grain: which captions are read.
        limits: what reading a sample may cost.
        lists: the lists among the sources, by their place.
    """

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[row] for row in range(len(self))[place]]
        place = range(len(self))[place]
        captions = self.captions_of(place)
        return Sample(
            self.id(place),
            tuple(map(self.caption, captions)),
            tuple(map(self.nouns, captions)),
            self.video(place),
            self.segment(place),
        )

    def select(self, places: Sequence[int]) -> SampleTable:
        """Some of the samples; none of those refused while listing."""
        chosen = np.asarray(places, np.int64)
        chosen = chosen if self._places is None else self._places[chosen]
        return self._with(_places=chosen, _selection=None)

    def selected(self, path: str) -> SampleTable:
        """The samples of a selection (`data.selection`), mapped from its file.

        Raises DataError for one that was made for other samples or another grain of captions.
        """
        selection = open_selection(path)
        if (selection.captions, selection.fingerprint) != (self.grain, self.fingerprint):
            raise DataError(
                f"data.select={path} was made for {selection.samples:,} samples with "
                f"{selection.captions} captions, and the data has {len(self):,} with {self.grain}: "
                "these are other ones; make it again with `svilm data filter` of the same source "
                "and captions"
            )
        return self._with(_places=selection.places, _selection=selection)

    def shuffled(self, shuffle: Shuffle) -> SampleTable:
        """The samples with captions of each other."""
        return self._with(_shuffle=shuffle)

    def mixed(self, shares: Mapping[str, float]) -> SampleTable:
        """The same samples with the captions of several grains, drawn in these shares.

        Empty: the table itself. Raises DataError where the table's own grain has no share, without
        which a sample might have nothing to draw.
        """
        if not shares:
            return self
        if self.grain not in shares:
            raise DataError(
                f"data.caption_mix has no share of {self.grain!r} captions, which data.captions "
                f"says every sample has: set data.caption_mix.{self.grain} above 0, or "
                f"data.captions={next(iter(shares))}"
            )
        codes = dict.fromkeys(code for grain in shares for code in caption_codes(grain))
        return self._with(_mix=dict(shares), _codes=tuple(codes))

    def with_nouns(self, config: DataConfig, split: str) -> SampleTable:
        """The same samples with nouns for all captions, found where none are stored.

        Raises DataError where that needs the index of `split` and it is of other samples.
        """
        if self.stored.header["has_nouns"]:
            return self
        if self.stored.path is None:
            index = self.stored.with_nouns(config.nouns)
        else:
            index = open_split(config, split, nouns=True).stored
            if index.header["views"][self.grain]["fingerprint"] != self._view["fingerprint"]:
                raise DataError(
                    f"the table holds other samples than data.{split}={getattr(config, split)!r}: "
                    "open it with these settings, or with nouns"
                )
        return self._with(stored=index, _view=index.header["views"][self.grain])

    def _with(self, **changed: Any) -> SampleTable:
        table = copy.copy(self)
        if "_places" in changed:  # what was found of other samples
            for name in ("rejected", "contents", "_shard_samples"):
                table.__dict__.pop(name, None)
        table.__dict__.update(changed)
        return table

    def captions_of(self, place: int) -> list[int]:
        """The rows of a sample's captions in the index."""
        place = self._place(place)
        if self._shuffle is not None:
            place = int(self._shuffle(np.array([place]))[0])
        columns = self.stored.columns
        row = self.stored.number(f"{self._prefix}rows", place) if self._prefix else place
        first, stop = self.stored.range("first_caption", row, "caption_grain")
        grains = columns["caption_grain"][first:stop].tolist()
        return [first + offset for offset, code in enumerate(grains) if code in self._codes]

    def caption(self, row: int) -> str:
        return self.stored.text("caption", row)

    def caption_weights(self, rows: Sequence[int]) -> np.ndarray | None:
        """Weights float64 [captions] of a sample's captions; None where all are equal.

        Of a mix of grains, those of a grain add up to its share.
        """
        weights = self.stored.columns.get("caption_weight")
        if not self._mix:
            if weights is None or not rows or math.isnan(weights[rows[0]]):
                return None
            return weights[rows]
        codes = self.stored.columns["caption_grain"][rows]
        return mixed_weights(codes, None if weights is None else weights[rows], self._mix)

    def nouns(self, row: int) -> tuple[str, ...] | None:
        """The nouns of a caption; None where it brings none and nobody has looked for them."""
        columns = self.stored.columns
        if "nouns_missing" in columns and columns["nouns_missing"][row]:
            return None
        first, stop = self.stored.range("first_noun", row, "noun")
        words = columns["noun"][first:stop].tolist()
        return tuple(self.stored.text("word", word) for word in words)

    def captions(self) -> Iterator[str]:
        """All captions of all samples in order."""
        for place in range(len(self)):
            yield from map(self.caption, self.captions_of(place))
            if place % _RELEASED_EVERY == 0:
                self.stored.release()

    def segment(self, place: int) -> Segment | None:
        columns = self.stored.columns
        if "segment_start" not in columns:
            return None
        row = self._row(place)
        if not 0 <= row < len(columns["segment_start"]):
            raise damaged(f"there is no row {row}")
        start = float(columns["segment_start"][row])
        return None if math.isnan(start) else (start, float(columns["segment_end"][row]))

    def label(self, place: int) -> Label | list[Label] | None:
        """The label or labels of a sample; None where it has none. Raises AnnotationError."""
        return self._annotation("label", place)

    def labels(self) -> Iterator[Label | list[Label] | None]:
        """The label of every sample in order."""
        return map(self.label, range(len(self)))

    def annotations(self, place: int) -> Annotations:
        """Label, question and answers of a sample. Raises AnnotationError."""
        label, question, answers = (self._annotation(name, place) for name in ANNOTATIONS)
        return Annotations(label, question, answers or [])

    def _annotation(self, name: str, place: int) -> Any:
        if f"{name}_start" not in self.stored.columns:
            return None
        encoded = self.stored.text(name, self._row(place))
        try:
            return from_column(name, encoded, self.id(place)) if encoded else None
        except (ValueError, KeyError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise damaged(f"{name!r} of {self.id(place)!r} is no JSON") from None


def open_split(
    config: DataConfig, split: str, *, nouns: bool = False, may_be_empty: bool = False
) -> SampleTable:
    """The samples of `config.train`, `.val` or `.test`.

    nouns: find them for captions that come without, as `config.nouns` says. Raises DataError when
    there are no samples, unless it `may_be_empty`.
    """
    where = getattr(config, split)
    if where is None:
        raise MissingFileError(
            f"data.{split} is not set: give a folder of shards or a CSV or JSONL list"
        )
    try:
        sources = read_sources([where] if isinstance(where, str) else where, config.videos)
        index = open_index(sources, config, nouns=nouns)
        for source in sources:
            if source.is_list:
                VideoFolder(source.videos)  # the folder of the videos is there
    except DataError as error:
        raise type(error)(f"data.{split}: {error}") from error
    starts = np.cumsum([0, *(len(source.names) for source in sources)]).tolist()
    roots = [(first, source.root) for first, source in zip(starts, sources)]
    lists = {first: each.path for first, each in zip(starts, sources) if each.is_list}
    table = SampleTable(index, roots, config.captions, config.limits, lists)
    if split == "train" and config.select is not None:
        table = table.selected(config.select)
    if not len(table) and not may_be_empty:
        rejected = table.rejected
        example = f"; for example {rejected[0].sample}: {rejected[0].message}" if rejected else ""
        raise DataError(f"data.{split}={where!r} holds no usable sample{example}")
    return table
