"""Ids that occur once, and the digests of samples."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from svilm_fast.data.index.columns import damaged, texts_of
from svilm_fast.data.index.schema import UNKNOWN, caption_codes
from svilm_fast.data.keys import sample_key

_PIECE = 1 << 16


def renamed_ids(keys: np.ndarray, id_of: Callable[[int], str]) -> dict[int, str]:
    """New ids of the rows whose id an earlier row has: `~2`, `~3` and so on are appended.

    keys: int64 [n], `sample_key` of the ids. Only rows with equal keys are looked at.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    waiting = sorted(order[again].tolist())
    renamed: dict[int, str] = {}
    given: set[str] = set()

    def rows_with(name: str) -> Iterator[int]:
        key = np.int64(sample_key(name))
        first, last = (np.searchsorted(ordered, key, side) for side in ("left", "right"))
        return (row for row in order[first:last].tolist() if id_of(row) == name)

    def is_used(name: str, before: int) -> bool:
        return name in given or next(rows_with(name), before) < before

    while waiting:
        row = heapq.heappop(waiting)
        name, number = id_of(row), 1
        new = name
        while row not in renamed and is_used(new, row):
            number += 1
            new = f"{name}~{number}"
        if new == name:
            continue
        renamed[row] = new
        given.add(new)
        later = next((other for other in rows_with(new) if other > row), None)
        if later is not None:  # an id that looks like a new one
            heapq.heappush(waiting, later)
    return renamed


def fingerprint(
    columns: Mapping[str, np.ndarray], ids: Iterator[bytes], rows: np.ndarray, grain: str
) -> str:
    """Changes when ids, captions, their weights, segments or their order change."""
    digest = hashlib.sha256()
    wanted = caption_codes(grain)
    codes, weights = columns["caption_grain"], columns.get("caption_weight")
    with_segment = "segment_start" in columns
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        first = columns["first_caption"][piece]
        counts = columns["first_caption"][piece + 1] - first
        if first.min(initial=0) < 0 or counts.min(initial=0) < 0 or counts.sum() > len(codes):
            raise damaged("samples have captions that it does not have")
        captions = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        if len(captions) and captions.max() >= len(codes):
            raise damaged("samples have captions that it does not have")
        grains = codes[captions].tolist()
        texts = zip(grains, _with_weights(columns, captions, weights))
        segments = [(np.nan, np.nan)] * len(piece)
        if with_segment:
            places = columns["segment_start"][piece], columns["segment_end"][piece]
            segments = list(zip(*(place.tolist() for place in places)))
        parts = []
        for count, segment in zip(counts.tolist(), segments):
            read = [next(texts) for _ in range(count)]
            part = [next(ids), *(text for code, text in read if code in wanted)]
            if segment[0] == segment[0]:
                part.append(repr(segment).encode())
            parts.append(b"\x1f".join(part) + b"\x1e")
        digest.update(b"".join(parts))
    return digest.hexdigest()[:32]


def _with_weights(
    columns: Mapping[str, np.ndarray], captions: np.ndarray, weights: np.ndarray | None
) -> Iterator[bytes]:
    texts = texts_of(columns, "caption", captions)
    if weights is None:
        return texts
    return (
        text if weight != weight else text + f"\x1d{weight!r}".encode()
        for text, weight in zip(texts, weights[captions].tolist())
    )


def contents(columns: Mapping[str, np.ndarray], ids: Iterator[bytes], rows: np.ndarray) -> str:
    """Changes when a member of a shard is replaced: sizes and checksums of all of them."""
    digest = hashlib.sha256()
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        sizes, sums = (columns[name][piece].tolist() for name in ("video_size", "video_crc"))
        parts = []
        for size, checksum in zip(sizes, sums):
            found = f"{size} {None if checksum == UNKNOWN else checksum}"
            parts.append(next(ids) + f"\x1f{found}\x1e".encode())
        digest.update(b"".join(parts))
    return digest.hexdigest()[:32]
