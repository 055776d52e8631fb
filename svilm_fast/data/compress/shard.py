"""The compression of one shard: a pure function, a unit of off-line work."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from svilm_fast.data.compress.clustering import Clustering, one_thread
from svilm_fast.data.compress.vectors import compressed, sampled, vectors_of
from svilm_fast.data.config import DataConfig, LimitsConfig
from svilm_fast.data.decode import DecodedClip
from svilm_fast.data.decode_process import decode_limited
from svilm_fast.data.describe import key_of
from svilm_fast.data.embeddings import MEMBER as EMBEDDING
from svilm_fast.data.errors import DataError, PaletteError
from svilm_fast.data.offline.outputs import Outputs
from svilm_fast.data.palettes.format import (
    MEMBER,
    SHARED_KEY,
    SHARED_MEMBER,
    PixelBlock,
    is_compressed,
    write_clip,
    write_shared,
)
from svilm_fast.data.sample_units import ListPiece
from svilm_fast.data.samples import SampleTable, open_split
from svilm_fast.data.sampling import FrameChoice, Together
from svilm_fast.data.segments import END_COLUMNS, START_COLUMNS, InSegment, part, segment_to_json
from svilm_fast.data.segments import KEY as SEGMENT
from svilm_fast.data.shards import INDEX_SUFFIX, ShardFile
from svilm_fast.data.skips import Skip
from svilm_fast.data.source_ids import KEY as SOURCE_ID
from svilm_fast.data.source_ids import source_name, source_with
from svilm_fast.data.timeline import Timeline


class Scope(StrEnum):
    CLIP = "clip"
    CLUSTER = "cluster"
    SHARD = "shard"


@dataclass(frozen=True)
class CompressSettings:
    """What every shard is compressed with.

    frames: most frames of a clip, evenly spaced in time. short_side: of stored frames, pixels;
    smaller ones stay. clips_per_palette: of scope=cluster, on average.
    """

    how: Clustering
    block: PixelBlock
    scope: Scope
    frames: int
    short_side: int
    clips_per_palette: int
    limits: LimitsConfig = field(default_factory=LimitsConfig)


@dataclass(frozen=True)
class _Source:
    """A decoded clip, and the timeline of its frames."""

    place: int
    clip: DecodedClip
    timeline: Timeline
    video_bytes: int


def compress_shard(
    name: str, source: str | ListPiece, settings: CompressSettings, out: Outputs
) -> dict[str, Any]:
    """Write the shard `name` with compressed clips and its index; without a clip there is no file.

    Returns counts and what was refused, as JSON.
    """
    piece = source if isinstance(source, ListPiece) else None
    config = DataConfig(
        train=source if piece is None else piece.path,
        videos=None if piece is None else piece.videos,
        captions="none",
        limits=settings.limits,
    )
    table = open_split(config, "train", may_be_empty=True)  # the others go on
    refused = list(table.rejected) if piece is None or piece.first == 0 else []
    places = range(len(table)) if piece is None else range(piece.first, piece.stop)
    with one_thread():
        return _Shard(name, table, settings, out, refused).write(places)


class _Shard:
    """A shard in work."""

    def __init__(
        self,
        name: str,
        table: SampleTable,
        settings: CompressSettings,
        out: Outputs,
        refused: list[Skip],
    ) -> None:
        self.name, self.table, self.settings, self.out = name, table, settings, out
        self.refused = refused
        self.counts = dict.fromkeys(
            ("clips", "frames", "pixel_bytes", "source_bytes", "clip_bytes", "palette_bytes"), 0
        )
        self.squared_error = 0

    def write(self, places: Sequence[int]) -> dict[str, Any]:
        palettes, palette_of, usable = self._shared(places)
        shard: ShardFile | None = None
        used = {SHARED_KEY}
        for source in self._decoded(usable):
            number = palette_of.get(source.place)
            try:
                members = self._members(source, number, palettes)
            except DataError as error:
                self._refuse(source.place, error)
                continue
            if shard is None:
                index = self.out.path(self.name + INDEX_SUFFIX)
                shard = ShardFile(self.out.path(self.name))
                if palettes:
                    data = write_shared(palettes)
                    shard.add(SHARED_KEY, {SHARED_MEMBER: data})
                    self.counts["palette_bytes"] = len(data)
            shard.add(key_of(self.table.id(source.place), None, used), members)
        if shard is not None:
            index.write_text(shard.close())
        refused = [vars(skip) for skip in self.refused]
        return {"counts": self.counts, "squared_error": self.squared_error, "refused": refused}

    def _members(
        self, source: _Source, number: int | None, palettes: list[np.ndarray]
    ) -> dict[str, bytes]:
        """Compressed clip, json and embedding of a sample; what is counted is counted here."""
        table, settings, place = self.table, self.settings, source.place
        vectors = vectors_of(source.clip.frames, settings.block)
        if number is None:
            palette = settings.how.palette(self._sampled(vectors, place, settings.how.sample))
        else:
            palette = palettes[number]
        clip = compressed(
            source.clip, source.timeline, vectors, palette, settings.how, settings.block
        )
        record = json.dumps(_record(table, place), ensure_ascii=False).encode()
        members = {MEMBER: write_clip(clip, number), "json": record}
        embedding = table.embedding_member(place)
        if embedding is not None:
            members[EMBEDDING] = embedding
        decoded = clip.decoded(np.arange(clip.frames))
        error = decoded.astype(np.int32) - source.clip.frames
        self.squared_error += int((error * error).sum(dtype=np.int64))
        counted = {
            "clips": 1,
            "frames": clip.frames,
            "pixel_bytes": decoded.size,
            "source_bytes": source.video_bytes,
            "clip_bytes": len(members[MEMBER]),
        }
        for what, count in counted.items():
            self.counts[what] += count
        return members

    def _shared(
        self, places: Sequence[int]
    ) -> tuple[list[np.ndarray], dict[int, int], Sequence[int]]:
        """Palettes that several clips share, which of them each clip has, and the usable clips.

        A first pass over the clips keeps some vectors of each.
        """
        settings = self.settings
        if settings.scope is Scope.CLIP or not places:
            return [], {}, places
        count = 1
        if settings.scope is Scope.CLUSTER:
            count = math.ceil(len(places) / settings.clips_per_palette)
        each = math.ceil(settings.how.sample * count / len(places))
        kept: dict[int, np.ndarray] = {}
        for source in self._decoded(places):
            vectors = vectors_of(source.clip.frames, settings.block)
            kept[source.place] = self._sampled(vectors, source.place, each)
        if not kept:
            return [], {}, []
        palettes, groups = shared_palettes(list(kept.values()), count, settings.how)
        return palettes, dict(zip(kept, groups, strict=True)), list(kept)

    def _sampled(self, vectors: np.ndarray, place: int, count: int) -> np.ndarray:
        return sampled(vectors, count, self.settings.how.seed, int(self.table.keys[place]))

    def _decoded(self, places: Sequence[int]) -> Iterator[_Source]:
        for place in places:
            try:
                yield self._decode(place)
            except DataError as error:
                self._refuse(place, error)

    def _decode(self, place: int) -> _Source:
        table, settings = self.table, self.settings
        data, segment = table.read_video(place), table.segment(place)
        if is_compressed(data):
            raise PaletteError("the clip is compressed already: compress the videos it came from")
        evenly = Together((FrameChoice(settings.frames, None),))
        clip = decode_limited(
            data,
            InSegment(evenly, segment),
            short_side=settings.short_side,
            limits=settings.limits,
        )
        # Frames that a file has lost are shown as the last one.
        index, rows = np.unique(clip.index, return_index=True)
        clip.index, clip.frames = index, clip.frames[rows]
        first, line = part(clip.timeline, segment)
        return _Source(place, clip, _timeline_of(index - first, line), len(data))

    def _refuse(self, place: int, error: DataError) -> None:
        self.refused.append(Skip.of(self.table.id(place), error))


def _timeline_of(places: np.ndarray, line: Timeline) -> Timeline:
    """The timeline of some frames of another one: each is shown until the next one is."""
    if len(places) == line.total or (line.edges is None and line.period <= 0):
        return Timeline(len(places), line.edges, line.period)
    edges = line.edges
    if edges is None:
        edges = np.arange(line.total + 1) * line.period
    return Timeline(len(places), np.append(edges[places], edges[-1]), line.period)


def _record(table: SampleTable, place: int) -> dict[str, Any]:
    """The json of a compressed sample: the clip is the segment now, and is none."""
    segment, listed = table.segment(place), table.listed_video(place)
    record = {**table.read_metadata(place), "id": table.id(place)}
    if listed is not None and source_name(record) is None:
        record[SOURCE_ID] = listed  # of what else it is a part is lost in a shard
    if segment is None:
        return record
    record["source"] = source_with(record, {SEGMENT: segment_to_json(segment)})
    return {k: v for k, v in record.items() if k not in (SEGMENT, *START_COLUMNS, *END_COLUMNS)}


def shared_palettes(
    vectors: Sequence[np.ndarray], count: int, how: Clustering
) -> tuple[list[np.ndarray], list[int]]:
    """About `count` palettes for clips, of whom some vectors are given, and the one of each."""
    groups = group_clips(vectors, count, how.seed).tolist()
    palettes = []
    for group in range(max(groups) + 1):
        mine = np.concatenate([v for v, g in zip(vectors, groups, strict=True) if g == group])
        palettes.append(how.palette(sampled(mine, how.sample, how.seed, group)))
    return palettes, groups


def group_clips(vectors: Sequence[np.ndarray], count: int, seed: int) -> np.ndarray:
    """Groups int64 [clips] of clips of similar colours, numbered without gaps.

    Clips are compared by means and deviations of red, green and blue.
    """
    from sklearn.cluster import KMeans

    if min(count, len(vectors)) == 1:
        return np.zeros(len(vectors), np.int64)
    colours = [each.reshape(-1, 3).astype(np.float64) for each in vectors]
    features = np.array([np.concatenate([c.mean(axis=0), c.std(axis=0)]) for c in colours])
    clusters = min(count, len(np.unique(features, axis=0)))
    labels = KMeans(clusters, n_init=1, random_state=seed).fit_predict(features)
    return np.unique(labels, return_inverse=True)[1]
