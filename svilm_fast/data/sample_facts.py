"""What is known of all samples of a split: refusals, shards, digests."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter

import numpy as np

from svilm_fast.data import files
from svilm_fast.data.captions import REPAIRED
from svilm_fast.data.errors import DataError
from svilm_fast.data.index.names import fingerprint
from svilm_fast.data.index.schema import GRAINS
from svilm_fast.data.nouns import OTHER_LANGUAGE
from svilm_fast.data.offline.manifest import digest
from svilm_fast.data.sample_files import SampleFiles
from svilm_fast.data.skips import Skip

WITHOUT_NOUNS = "captions without nouns"


class SampleFacts(SampleFiles):
    """Counts and digests of all samples."""

    @functools.cached_property
    def rejected(self) -> list[Skip]:
        """What was refused while listing the samples."""
        columns = self.stored.columns
        if self._places is not None or not self._view["rejected"]:
            return []
        rows = np.flatnonzero(columns["rejected_grains"] & (1 << GRAINS.index(self.grain)))
        names = ("rejected_name", "rejected_reason", "rejected_message")
        return [Skip(*(self.stored.text(name, row) for name in names)) for row in rows.tolist()]

    @property
    def notes(self) -> Counter[str]:
        """What was repaired and kept."""
        return +Counter({REPAIRED: self._view["repaired"]})

    @property
    def noun_notes(self) -> Counter[str]:
        """How many captions have no nouns; known where nouns were looked for."""
        counts = {WITHOUT_NOUNS: "without_nouns", OTHER_LANGUAGE: "other_language"}
        return +Counter({note: self._view[name] for note, name in counts.items()})

    def shard_starts(self) -> np.ndarray:
        """The place of the first sample of each shard, and their number: int64 [shards + 1].

        Shards without a sample count too; a list is one shard.
        """
        shards = self.stored.columns["shard"]
        if self._prefix or self._places is not None:
            shards = shards[self._rows()]
        every = np.arange(len(self.stored.columns["place_size"]) + 1, dtype=shards.dtype)
        return np.searchsorted(shards, every)

    def places_of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The places int64 [m] of ascending rows of the index. Raises DataError for others."""
        mine = self._rows()
        places = np.searchsorted(mine, rows)
        if len(rows) and (places[-1] >= len(mine) or (mine[places] != rows).any()):
            raise DataError("rows of the index that the split does not have")
        return places

    def shard_samples(self) -> np.ndarray:
        """Samples of each shard, int64 [shards], in their order; a list counts as one shard."""
        return self._shard_samples

    @functools.cached_property
    def _shard_samples(self) -> np.ndarray:
        shards = self.stored.columns["shard"]
        if self._prefix or self._places is not None:
            shards = shards[self._rows()]
        ends = np.flatnonzero(shards[1:] != shards[:-1]) + 1  # samples lie shard by shard
        sizes = np.diff(ends, prepend=0, append=len(shards))
        return sizes[sizes > 0]

    @property
    def fingerprint(self) -> str:
        """Changes when ids, captions, segments, their order or the mix of grains change."""
        own = str(self._view["fingerprint"])
        if self._selection is not None:
            own = digest([own, self._selection.digest])[:32]
        elif self._places is not None:
            own = fingerprint(self.stored.columns, self.encoded_ids(), self._rows(), self.grain)
        if not self._mix:
            return own
        views = self.stored.header["views"]
        others = {grain: [share, views[grain]["fingerprint"]] for grain, share in self._mix.items()}
        return digest([own, others])[:32]

    @functools.cached_property
    def contents(self) -> str:
        """Changes when a video is replaced under its name: sizes and checksums of all of them.

        A member of an indexed shard has a CRC-32 there. Of a local file the size and the CRC-32 of
        its two ends are taken, so that large files cost two small reads. Other videos count by name
        alone.
        """
        if self._places is None and self._view["contents"] is not None:
            return str(self._view["contents"])
        digest = hashlib.sha256()
        for place, name in enumerate(self.encoded_ids()):
            video = self.video(place)
            if video.entry is not None:
                found = f"{video.entry.size} {video.entry.crc32}"
            else:
                try:
                    is_file = os.path.isfile(video.path)
                    found = files.ends_checksum(video.path) if is_file else ""
                except (OSError, DataError):
                    found = ""  # reading it for training will say why
            digest.update(name + f"\x1f{found}\x1e".encode())
        return digest.hexdigest()[:32]
