"""The columns of an index.

Per sample: `id`, `key` (`sample_key` of the id), `grains` (with which grains it is usable), `shard`
(row of `place`), the video's member (`video_offset`, `video_size`, `video_crc`) or its `path` below
the folder of a list's videos, the json's member (`record_*`) or the json itself (`record`),
`segment_start` and `segment_end` in seconds (NaN: the whole video), `first_caption` [n + 1], the
stored embedding's member (`embedding_*`), and `label`, `question` and `answers` as JSON.
Per caption: `caption`, `caption_grain`, `caption_weight` (NaN: none is given), `first_noun`
[c + 1], `nouns_missing`.
Per noun of a caption: `noun`, a row of `word`. Per shard: `place`, `place_size`. Per rejected
sample: `rejected_name`, `rejected_reason`, `rejected_message`, `rejected_grains`.
Columns that would hold nothing are left out; readers take what is common then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from svilm_fast.data.annotations import ANNOTATIONS

VERSION = 2  # 1: without the grain `none`, weights, labels and embeddings

# Bit i of `grains` stands for GRAINS[i]. `caption_grain` is 0 for a caption of every grain, else
# 1 + its place here. The grain NONE reads no captions and needs none.
CAPTIONED = ("coarse", "fine", "fused")
NONE = "none"
GRAINS = (*CAPTIONED, NONE)
EVERY_CAPTIONED = (1 << len(CAPTIONED)) - 1
EVERY = (1 << len(GRAINS)) - 1
UNKNOWN = -1  # a checksum that no index file gives; the size of what is no member

SAMPLE = {
    "grains": "u1",
    "video_offset": "<i8",
    "video_size": "<i8",
    "video_crc": "<i8",
    "record_offset": "<i8",
    "record_size": "<i8",
    "record_crc": "<i8",
    "segment_start": "<f8",
    "segment_end": "<f8",
    "embedding_offset": "<i8",
    "embedding_size": "<i8",
    "embedding_crc": "<i8",
}
CAPTION = {"caption_grain": "u1", "caption_weight": "<f8", "nouns_missing": "u1"}
REJECTED = {"rejected_grains": "u1"}
DTYPES = SAMPLE | CAPTION | REJECTED
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
