"""The columns of an index.

Per sample: `id`, `key` (`sample_key` of the id), `grains` (with which grains it is usable), `shard`
(row of `place`), the video's member (`video_offset`, `video_size`, `video_crc`) or its `path` below
the folder of a list's videos, the json's member (`record_*`) or the json itself (`record`),
`segment_start` and `segment_end` in seconds (NaN: the whole video), `source` (the key of the video
that the sample is a clip of; left out where all are different), `first_caption` [n + 1], the
stored embedding's member (`embedding_*`), and `label`, `question` and `answers` as JSON.
Per caption: `caption`, `caption_grain`, `caption_weight` (NaN: none is given), `first_noun`
[c + 1], `nouns_missing`.
Per noun of a caption: `noun`, a row of `word`. Per shard: `place`, `place_size`, `place_ends`
(CRC-32 of a local shard's ends), `place_mark` (a store's checksum or time). Per rejected sample:
`rejected_name`, `rejected_reason`, `rejected_message`, `rejected_grains`.
Columns that would hold nothing are left out; readers take what is common then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from svilm_fast.data.annotations import ANNOTATIONS

# 1 had no grain `none`, weights, labels, embeddings; 2 no `place_ends` and `place_mark`; 3 no
# `source`.
VERSION = 4

# Bit i of `grains` stands for GRAINS[i]. `caption_grain` is 0 for a caption of every grain, else
# 1 + its place here. The grain NONE reads no captions and needs none.
CAPTIONED = ("coarse", "fine", "fused")
NONE = "none"
GRAINS = (*CAPTIONED, NONE)
EVERY_CAPTIONED = (1 << len(CAPTIONED)) - 1
EVERY = (1 << len(GRAINS)) - 1
COUNTS = ("repaired", "without_nouns", "other_language")  # captions, of each grain
UNKNOWN = -1  # a checksum that no index file gives; the size of what is no member

SAMPLE = {
    "grains": "u1",
    "video_offset": "<i8",
    "video_size": "<i8",
    "video_crc": "<i8",
    "record_offset": "<i8",
    "record_size": "<i8",
    "record_crc": "<i8",
    "source": "<i8",
    "segment_start": "<f8",
    "segment_end": "<f8",
    "embedding_offset": "<i8",
    "embedding_size": "<i8",
    "embedding_crc": "<i8",
}
CAPTION = {"caption_grain": "u1", "caption_weight": "<f8", "nouns_missing": "u1"}
REJECTED = {"rejected_grains": "u1"}
PLACE = {"place_size": "<i8", "place_ends": "<i8"}
OTHERS = {"key": "<i8", "rows": "<i8", "shard": "<u4", "noun": "<u4"}
OTHERS |= {"first_caption": "<i8", "first_noun": "<i8"}
DTYPES = SAMPLE | CAPTION | REJECTED
STORED = DTYPES | PLACE | OTHERS  # in a file; texts aside
TEXTS = (
    "id",
    "path",
    "record",
    *ANNOTATIONS,
    "caption",
    "rejected_name",
    "rejected_reason",
    "rejected_message",
)


def caption_codes(grain: str) -> tuple[int, ...]:
    """The values of `caption_grain` that a grain reads."""
    return () if grain == NONE else (0, 1 + GRAINS.index(grain))


def starts_of(counts: Sequence[int]) -> np.ndarray:
    """Where each of several lists of `counts` elements begins, and their sum: int64 [n + 1]."""
    starts = np.zeros(len(counts) + 1, "<i8")
    np.cumsum(counts, out=starts[1:])
    return starts


def mixed_weights(
    codes: np.ndarray, weights: np.ndarray | None, shares: Mapping[str, float]
) -> np.ndarray:
    """Weights float64 [c] of a sample's captions; those of a grain add up to its share.

    codes: their `caption_grain`. weights: their `caption_weight` (NaN: none); None: none at all.
    """
    found = np.ones(len(codes))
    for code in np.unique(codes).tolist():
        mine = codes == code
        given = np.ones(len(codes))[mine] if weights is None else weights[mine]
        if np.isnan(given).any():
            given = np.ones(len(given))
        # A caption without a grain has none of a grain beside it: any share will do.
        share = shares[GRAINS[code - 1]] if code else 1.0
        found[mine] = share * given / given.sum()
    return found
