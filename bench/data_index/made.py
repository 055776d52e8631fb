"""A made data set: shards that are empty but for their size, and an index of any number of samples.

Columns are written as a build writes them, from arrays that are made chunk by chunk: ten million
samples take little memory and no video.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from svilm_fast.data.config import DataConfig
from svilm_fast.data.index.columns import Spools, text_arrays, write_columns
from svilm_fast.data.index.part import IndexParameters
from svilm_fast.data.index.schema import EVERY, GRAINS, UNKNOWN, VERSION
from svilm_fast.data.index.sources import describe, read_sources
from svilm_fast.data.index.store import path_beside

SHARD_SAMPLES = 1000
SHARD_BYTES = 1 << 30
NOUNS = 3  # of a caption
_CHUNK = 100_000
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
_THINGS = ("circle", "square", "triangle", "star", "dog", "cat", "boat", "kite", "lamp", "drum")
WORDS = sorted(f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS)


def make(folder: Path, samples: int) -> Path:
    """Write the shards and the index of `samples` samples into a folder; the index's path."""
    folder.mkdir(parents=True)
    shards = [folder / f"shard-{n:06d}.tar" for n in range(-(-samples // SHARD_SAMPLES))]
    for shard in shards:
        with shard.open("wb") as file:
            file.truncate(SHARD_BYTES)  # takes no space on disk
    sources = read_sources([str(folder)], None)
    path = path_beside(sources, IndexParameters.of(DataConfig(), nouns=True))
    assert path is not None
    spools = Spools(folder)
    for first in range(0, samples, _CHUNK):
        _append(spools, np.arange(first, min(first + _CHUNK, samples)))
    columns = spools.columns()
    columns["word_start"], columns["word_text"] = text_arrays([word.encode() for word in WORDS])
    columns["place_start"], columns["place_text"] = text_arrays([s.name.encode() for s in shards])
    columns["place_size"] = np.full(len(shards), SHARD_BYTES, "<i8")
    columns["place_ends"] = np.full(len(shards), UNKNOWN, "<i8")
    view = {"samples": samples, "rejected": 0, "prefix": "", "fingerprint": "made"}
    view |= {"contents": "made", "repaired": 0, "without_nouns": 0, "other_language": 0}
    header = {
        "version": VERSION,
        "samples": samples,
        "captions": samples,
        "has_nouns": True,
        "views": dict.fromkeys(GRAINS, view),
        "same_source": {"together": True, "most": min(samples, 1)},
        "sources": [describe(source) for source in sources],
    }
    write_columns(path, header, columns)
    return path


def _append(spools: Spools, rows: np.ndarray) -> None:
    count, within = len(rows), rows % SHARD_SAMPLES
    ids = [b"sample-%09d" % row for row in rows.tolist()]
    nouns = (rows[:, None] * (1, 7, 31) + (0, 3, 11)) % len(WORDS)
    captions = [
        f"clip {row}: a {WORDS[a]} moves beside a {WORDS[b]} over a {WORDS[c]}.".encode()
        for row, (a, b, c) in zip(rows.tolist(), nouns.tolist(), strict=True)
    ]
    spools.append("key", "<i8", (rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> 1)
    spools.append_texts("id", *text_arrays(ids))
    spools.append("grains", "u1", np.full(count, EVERY))
    spools.append("shard", "<u4", rows // SHARD_SAMPLES)
    spools.append("video_offset", "<i8", within * 1_000_000 + 512)
    spools.append("video_size", "<i8", np.full(count, 990_000))
    spools.append("video_crc", "<i8", rows % (1 << 32))
    spools.append("record_offset", "<i8", within * 1_000_000 + 991_232)
    spools.append("record_size", "<i8", np.full(count, 300))
    spools.append("record_crc", "<i8", rows % (1 << 32))
    spools.append_starts("first_caption", np.arange(count + 1))
    spools.append("caption_grain", "u1", np.zeros(count))
    spools.append_texts("caption", *text_arrays(captions))
    spools.append_starts("first_noun", np.arange(count + 1) * NOUNS)
    spools.append("noun", "<u4", nouns.ravel())
