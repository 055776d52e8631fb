"""An open index: mapped from a file, or in memory."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from svilm_fast.data.annotations import ANNOTATIONS
from svilm_fast.data.config import NounsConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.index.columns import Columns, damaged, range_at, read_columns, text_at
from svilm_fast.data.index.nouns import find_nouns
from svilm_fast.data.index.schema import CAPTION, COUNTS, GRAINS, SAMPLE, STORED, TEXTS, VERSION
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

    def number(self, name: str, row: int) -> int:
        """The whole number of one row of a column. Raises DataError where there is none."""
        column = self.columns[name]
        if not 0 <= row < len(column):
            raise damaged(f"there is no row {row} of {name!r}")
        return int(column[row])

    def range(self, name: str, row: int, of: str) -> tuple[int, int]:
        """The range of rows of the column `of` that one row of `name` means. Raises DataError."""
        return range_at(self.columns[name], name, row, len(self.columns[of]))

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
    """Whether all needed columns are there, of their dtypes and as long as the others say."""
    try:
        samples, captions = header["samples"], header["captions"]
        places = sum(source["places"] for source in header["sources"])
        numbers = [samples, captions, *(source["places"] for source in header["sources"])]
        numbers.append(header["same_source"]["most"])
        of_samples = ["grains", "shard", "video_offset", "video_size", "video_crc"]
        of_samples += ["record_offset", "record_size", "record_crc"]
        lengths = [(name, samples) for name in of_samples]
        lengths += [("first_caption", samples + 1), ("caption_grain", captions)]
        lengths += [("caption_start", captions + 1), ("first_noun", captions + 1)]
        lengths += [("place_size", places), ("place_ends", places), ("place_start", places + 1)]
        lengths += [("noun", len(columns["noun"])), ("word_start", len(columns["word_start"]))]
        rejected = len(columns.get("rejected_grains", ()))
        for grain in GRAINS:
            view = header["views"][grain]
            prefix, count = view["prefix"], view["samples"]
            if prefix not in ("", *(f"{each}_" for each in GRAINS)) or (
                not prefix and count != samples
            ):
                return False
            lengths += [(f"{prefix}key", count), (f"{prefix}id_start", count + 1)]
            lengths += [(f"{prefix}rows", count)] if prefix else []
            numbers += [count, *(view[name] for name in ("rejected", *COUNTS))]
            digests = (view["fingerprint"], view["contents"] or "")
            if (
                not all(isinstance(digest, str) for digest in digests)
                or view["rejected"] > rejected
            ):
                return False
        lengths += [(name, samples) for name in SAMPLE if name in columns]
        lengths += [(name, captions) for name in CAPTION if name in columns]
        optional = [(name, samples) for name in ("path", "record", *ANNOTATIONS)]
        optional += [(name, rejected) for name in TEXTS if name.startswith("rejected")]
        optional += [("place_mark", places)]
        lengths += [(f"{n}_start", count + 1) for n, count in optional if f"{n}_start" in columns]
        together = [{f"{kind}_offset", f"{kind}_size", f"{kind}_crc"} for kind in ("embedding",)]
        together += [{"segment_start", "segment_end"}]
        together += [{f"{name}_start" for name in TEXTS if name.startswith("rejected")}]
        return (
            all(type(number) is int and number >= 0 for number in numbers)
            and type(header["has_nouns"]) is bool
            and type(header["same_source"]["together"]) is bool
            and ("source" in columns) == (header["same_source"]["most"] > 1)
            and all(len(columns[name]) == length for name, length in lengths)
            and all(_has_dtype(name, column) for name, column in columns.items())
            and all(f"{n[:-6]}_text" in columns or n == "segment_start" for n in _starts(columns))
            and all(not names & columns.keys() or names <= columns.keys() for names in together)
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _starts(columns: Columns) -> list[str]:
    return [name for name in columns if name.endswith("_start")]


def _has_dtype(name: str, column: np.ndarray) -> bool:
    bare = name
    for grain in GRAINS:
        bare = bare.removeprefix(f"{grain}_")
    usual = "u1" if bare.endswith("_text") else "<i8" if bare.endswith("_start") else None
    wanted = STORED.get(bare, usual)
    return wanted is None or column.dtype == np.dtype(wanted)


def _reopened(path: str, identity: Any) -> Index:
    index = Index.open(path)
    if index._identity() != identity:
        raise DataError(f"{path!r} was replaced by another index while a process was started")
    return index
