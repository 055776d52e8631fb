"""The rows of an index that are the samples of a split, and their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from svilm_fast.data.config import LimitsConfig
from svilm_fast.data.index.columns import damaged, texts_of
from svilm_fast.data.index.file import Index
from svilm_fast.data.index.schema import caption_codes
from svilm_fast.data.selection import Selection
from svilm_fast.data.shards import ShardReader

# For each sample the one with whose captions it is shown, by place in the table.
Shuffle = Callable[[np.ndarray], np.ndarray]


class Ids(Sequence[str]):
    """The ids of a table, each read from the index when it is asked for."""

    def __init__(self, table: SampleRows) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._table.id(row) for row in range(len(self))[place]]
        return self._table.id(range(len(self))[place])

    def __iter__(self) -> Iterator[str]:
        return map(bytes.decode, self._table.encoded_ids())


class SampleRows:
    """Places of samples in an index; arguments as `SampleTable`."""

    def __init__(
        self,
        index: Index,
        roots: Sequence[tuple[int, str]],
        grain: str,
        limits: LimitsConfig,
        lists: Mapping[int, str] | None = None,
    ) -> None:
        self.stored, self.grain, self.limits = index, grain, limits
        self._roots = tuple(roots)
        self._places: np.ndarray | None = None  # int64 [n] of those that the grain has; None: all
        self._shuffle: Shuffle | None = None
        self._view: dict[str, Any] = index.header["views"][grain]
        self._prefix: str = self._view["prefix"]
        self._codes = caption_codes(grain)
        self._selection: Selection | None = None  # that `_places` are mapped from
        self._mix: dict[str, float] = {}  # shares of the grains; empty: only `grain`
        self._reader = ShardReader()
        self._lists = dict(lists or {})
        self._vectors: dict[tuple[int, int], np.ndarray] = {}  # of lists, mapped
        self._shared: dict[str, list[bytes]] = {}  # palettes of shards

    def __len__(self) -> int:
        return int(self._view["samples"]) if self._places is None else len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.copy()
        for name in ("rejected", "contents", "_shard_samples"):
            kept.pop(name, None)
        if self._selection is not None:
            kept["_places"] = None  # mapped again, not copied
        return {**kept, "_vectors": {}, "_shared": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._selection is not None:
            self._places = self._selection.places

    def _row(self, place: int) -> int:
        """The row of the index for a place in the table."""
        place = self._place(place)
        if not self._prefix:
            return place
        row = self.stored.number(f"{self._prefix}rows", place)
        if not 0 <= row < len(self.stored.columns["shard"]):
            raise damaged(f"there is no sample in row {row}")
        return row

    def _place(self, place: int) -> int:
        return place if self._places is None else int(self._places[place])

    def _rows(self) -> np.ndarray:
        if not self._prefix:
            return np.arange(len(self)) if self._places is None else self._places
        rows = self.stored.columns[f"{self._prefix}rows"]
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.stored.header["samples"]:
            raise damaged("samples are named that it does not have")
        return rows if self._places is None else rows[self._places]

    @property
    def ids(self) -> Ids:
        return Ids(self)

    def id(self, place: int) -> str:
        return self.stored.text(f"{self._prefix}id", self._place(place))

    def encoded_ids(self) -> Iterator[bytes]:
        """All ids in order, as UTF-8."""
        return texts_of(self.stored.columns, f"{self._prefix}id", self._places)

    @property
    def keys(self) -> np.ndarray:
        """`sample_key` of the ids, int64 [n]; of a whole table the mapped column itself."""
        keys = self.stored.columns[f"{self._prefix}key"]
        return keys if self._places is None else keys[self._places]

    def keys_at(self, places: Sequence[int]) -> np.ndarray:
        """`sample_key` of some samples, int64 [b]."""
        rows = np.asarray(places, np.int64)
        found = rows if self._places is None else self._places[rows]
        return self.stored.columns[f"{self._prefix}key"][found]

    def sources_at(self, places: Sequence[int]) -> np.ndarray:
        """Keys int64 [b] of the source videos of some samples; equal for clips of one."""
        columns = self.stored.columns
        if "source" not in columns:
            return self.keys_at(places)
        return columns["source"][[self._row(place) for place in places]]

    @property
    def same_source(self) -> dict[str, Any]:
        """Whether the clips of every source follow one another, and the most that one has.

        The facts are of the whole index: a part of it has no other order, and no more of a source.
        """
        return self.stored.header["same_source"]

    def index_row(self, place: int) -> int:
        """The row of a sample in the index, which no grain of captions changes."""
        return self._row(place)
