"""Parts, in the order of their shards, become one index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from svilm_fast.data.annotations import ANNOTATIONS
from svilm_fast.data.index.columns import Columns, Spools, text_arrays, text_at, texts_of
from svilm_fast.data.index.names import contents, fingerprint, renamed_ids
from svilm_fast.data.index.schema import (
    CAPTION,
    COUNTS,
    GRAINS,
    NONE,
    REJECTED,
    SAMPLE,
    TEXTS,
    UNKNOWN,
    VERSION,
)
from svilm_fast.data.keys import sample_key
from svilm_fast.data.source_ids import sources_facts

_PIECE = 1 << 20


class Merger:
    """Adds up parts. folder: where columns grow in unnamed files; None: in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self.samples = 0
        self.has_nouns = True
        self._spools = Spools(folder)
        self._folder = folder
        self._words: dict[bytes, int] = {}
        self._ends: dict[int, int] = {}
        self._counts = {name: np.zeros(len(GRAINS), "<i8") for name in COUNTS}

    def add(self, part: Columns, place: int) -> None:
        """Append the samples of a part that lie in the shard, or the folder, number `place`."""
        spools, count = self._spools, len(part["grains"])
        for name, dtype in (SAMPLE | CAPTION | REJECTED).items():
            if name in part:
                spools.append(name, dtype, part[name])
        for name in TEXTS:
            spools.append_texts(name, part[f"{name}_start"], part[f"{name}_text"])
        keys = [sample_key(name.decode()) for name in texts_of(part, "id")]
        spools.append("key", "<i8", keys)
        spools.append("shard", "<u4", np.full(count, place))
        words = [self._words.setdefault(w, len(self._words)) for w in texts_of(part, "word")]
        nouns = np.array(words, "<u4")[part["noun"]]
        spools.append_starts("first_caption", part["first_caption"])
        spools.append_starts("first_noun", part["first_noun"])
        spools.append("noun", "<u4", nouns)
        for name, total in self._counts.items():
            total += part.get(name, 0)
        self.has_nouns &= "without_nouns" in part
        if "place_ends" in part:
            self._ends[place] = int(part["place_ends"][0])
        self.samples += count

    def finish(
        self, places: list[str], sizes: list[int], marks: list[str]
    ) -> tuple[dict[str, Any], Columns]:
        """Header and columns. places: names of the shards; sizes, marks: as `Source` has them."""
        columns = self._spools.columns()
        self._sort_words(columns)
        columns["place_start"], columns["place_text"] = text_arrays(
            [os.fsencode(p) for p in places]
        )
        columns["place_size"] = np.array(sizes, "<i8")
        ends = [self._ends.get(place, UNKNOWN) for place in range(len(places))]
        columns["place_ends"] = np.array(ends, "<i8")
        marked = text_arrays([mark.encode() for mark in marks])
        columns["place_mark_start"], columns["place_mark_text"] = marked
        header: dict[str, Any] = {
            "version": VERSION,
            "samples": self.samples,
            "captions": len(columns["caption_grain"]),
            "has_nouns": self.has_nouns,
            "views": self._views(columns),
            "same_source": sources_facts(columns["source"]),
        }
        alone = header["same_source"]["most"] <= 1
        return header, _without_empty(columns, header_alone=alone)

    def _sort_words(self, columns: Columns) -> None:
        words = sorted(self._words)
        rank = np.zeros(len(words), "<u4")
        rank[[self._words[word] for word in words]] = np.arange(len(words))
        nouns = columns["noun"]
        for first in range(0, len(nouns), _PIECE):
            piece = slice(first, first + _PIECE)
            nouns[piece] = rank[nouns[piece]]
        columns["word_start"], columns["word_text"] = text_arrays(words)

    def _views(self, columns: Columns) -> dict[str, Any]:
        """What is read with each grain: rows, ids, digests, counts. Adds the columns of ids.

        Samples that are not usable with every grain give the grains rows of their own, and ids,
        since it depends on the samples before which of them occur again.
        """
        by_member = bool(self.samples and (columns["video_size"] != UNKNOWN).all())
        by_grain = bool(columns["caption_grain"].any())
        views: dict[str, Any] = {}
        named: dict[bytes | None, dict[str, Any]] = {}
        added: Columns = {}
        for place, grain in enumerate(GRAINS):
            rows = np.flatnonzero(columns["grains"] & (1 << place))
            every = len(rows) == self.samples
            prefix = "" if every else f"{grain}_"
            same = None if every else rows.tobytes()
            digests = named.get(same)
            if digests is None:
                ids = self._ids(columns, rows)
                added |= {f"{prefix}{name}": column for name, column in ids.items()}
                if not every:
                    added[f"{prefix}rows"] = rows
                digests = named[same] = {"prefix": prefix, "fingerprint": None, "contents": None}
                if by_member:
                    digests["contents"] = contents(columns, texts_of(ids, "id"), rows)
            if by_grain or grain == NONE or digests["fingerprint"] is None:
                ids = {name: added[f"{digests['prefix']}id_{name}"] for name in ("start", "text")}
                names = texts_of({f"id_{name}": column for name, column in ids.items()}, "id")
                digests = {**digests, "fingerprint": fingerprint(columns, names, rows, grain)}
                named[same] = digests
            views[grain] = {
                "samples": len(rows),
                "rejected": int(np.count_nonzero(columns["rejected_grains"] & (1 << place))),
                **digests,
                **{name: int(total[place]) for name, total in self._counts.items()},
            }
        columns |= added
        return views

    def _ids(self, columns: Columns, rows: np.ndarray) -> Columns:
        """Ids and keys of samples: ids that occur again get `~2`, `~3` and so on."""
        keys = columns["key"][rows]
        renamed = renamed_ids(keys, lambda row: text_at(columns, "id", rows[row]))
        if not renamed and len(rows) == self.samples:
            return {name: columns[name] for name in ("key", "id_start", "id_text")}
        for row, name in renamed.items():
            keys[row] = sample_key(name)
        spools = Spools(self._folder)
        for first in range(0, max(1, len(rows)), _PIECE):  # of no rows, empty columns
            piece = rows[first : first + _PIECE]
            names = list(texts_of(columns, "id", piece))
            for row in range(len(piece)):
                if first + row in renamed:
                    names[row] = renamed[first + row].encode()
            spools.append_texts("id", *text_arrays(names))
        return {"key": keys, **spools.columns()}


def _without_empty(columns: Columns, *, header_alone: bool) -> Columns:
    """Leave out columns that would hold nothing; header_alone: also the sources of samples."""
    texts = ("path", "record", "place_mark", *ANNOTATIONS)
    empty = [name for name in texts if not len(columns[f"{name}_text"])]
    if not len(columns["rejected_grains"]):
        empty += ["rejected_name", "rejected_reason", "rejected_message", "rejected_grains"]
    if np.isnan(columns["segment_start"]).all():
        empty += ["segment_start", "segment_end"]
    if (columns["embedding_size"] == UNKNOWN).all():
        empty += ["embedding_offset", "embedding_size", "embedding_crc"]
    if np.isnan(columns["caption_weight"]).all():
        empty += ["caption_weight"]
    if header_alone:
        empty += ["source"]
    if not columns.get("nouns_missing", np.zeros(0)).any():
        empty += ["nouns_missing"]
    dropped = {*empty, *(f"{name}{part}" for name in empty for part in ("_start", "_text"))}
    return {name: column for name, column in columns.items() if name not in dropped}
