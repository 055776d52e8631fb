"""An open index: mapped from a file, or in memory."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

from svilm_fast.data.annotations import ANNOTATIONS
from svilm_fast.data.config import NounsConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.index.columns import Columns, read_columns, text_at
from svilm_fast.data.index.nouns import find_nouns
from svilm_fast.data.index.schema import CAPTION, GRAINS, SAMPLE, VERSION
from svilm_fast.data.nouns import build_extractor


@dataclass(frozen=True)
class Index:
    """Header and columns (`index.schema`). Of a file, another process is given the path alone."""

    header: dict[str, Any]
    columns: Columns
    path: str | None = None
    mapping: mmap.mmap | None = None

    @classmethod
    def open(cls, path: str) -> Index:
        """Map a file: no column is read. Raises DataError for one of another version."""
        header, columns, mapping = read_columns(path)
        if header.get("version") != VERSION:
            raise DataError(
                f"{path!r} is an index of version {header.get('version')!r}, not {VERSION}: "
                "make it again with `svilm data index`"
            )
        if not _fits(header, columns):
            raise DataError(f"{path!r} is a damaged index: its columns do not belong together")
        return cls(header, columns, path, mapping)

    def text(self, name: str, row: int) -> str:
        """The text of one row of a column of texts."""
        return text_at(self.columns, name, row)

    def release(self) -> None:
        """Unmap what was read; the next read maps it again from the page cache.

        A read maps 16 pages, so that a process that reads rows in random order would soon have
        mapped the whole file: its page tables and its share of the memory would grow.
        """
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)

    def with_nouns(self, config: NounsConfig) -> Index:
        """The index in memory with nouns for captions that came without."""
        columns = find_nouns(dict(self.columns), config, build_extractor(config))
        views = {
            grain: view
            | {name: int(columns[name][place]) for name in ("without_nouns", "other_language")}
            for place, (grain, view) in enumerate(
                (grain, self.header["views"][grain]) for grain in GRAINS
            )
        }
        return Index(self.header | {"has_nouns": True, "views": views}, columns)

    def __reduce__(self) -> Any:
        if self.path is None:
            return Index, (self.header, self.columns)
        return _reopened, (os.path.abspath(self.path), self._identity())

    def _identity(self) -> Any:
        return [self.header["samples"], self.header["views"]]


def _fits(header: dict[str, Any], columns: Columns) -> bool:
    """Whether the columns that every index has are there, each as long as the others say."""
    try:
        samples, captions = header["samples"], header["captions"]
        of_samples = ["grains", "shard", "video_offset", "video_size", "video_crc"]
        of_samples += ["record_offset", "record_size", "record_crc"]
        lengths = [(name, samples) for name in of_samples]
        lengths += [("first_caption", samples + 1), ("caption_grain", captions)]
        lengths += [("caption_start", captions + 1), ("first_noun", captions + 1)]
        places = sum(source["places"] for source in header["sources"])
        lengths += [("place_size", places), ("place_start", places + 1)]
        for grain in GRAINS:
            view = header["views"][grain]
            prefix, count = view["prefix"], view["samples"]
            lengths += [(f"{prefix}key", count), (f"{prefix}id_start", count + 1)]
            lengths += [(f"{prefix}rows", count)] if prefix else []
            view["fingerprint"], view["contents"], view["rejected"]
        lengths += [(name, samples) for name in SAMPLE if name in columns]
        lengths += [(name, captions) for name in CAPTION if name in columns]
        of_texts = [f"{name}_start" for name in ("path", "record", *ANNOTATIONS)]
        lengths += [(name, samples + 1) for name in of_texts if name in columns]
        return all(len(columns[name]) == length for name, length in lengths)
    except (KeyError, TypeError):
        return False


def _reopened(path: str, identity: Any) -> Index:
    index = Index.open(path)
    if index._identity() != identity:
        raise DataError(f"{path!r} was replaced by another index while a process was started")
    return index
