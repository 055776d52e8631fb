"""Make the index of sources: parts one after the other, then one file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from svilm_fast.data.index.columns import Columns, write_columns
from svilm_fast.data.index.file import Index
from svilm_fast.data.index.merge import Merger
from svilm_fast.data.index.part import IndexParameters, build_list, build_part
from svilm_fast.data.index.sources import Source, describe

Parts = Iterator[tuple[int, Columns]]
Advance = Callable[[int], None]  # told the number of samples of every part


def build_parts(sources: Sequence[Source], parameters: IndexParameters) -> Parts:
    """The parts of all shards and lists in order, each with the number of its place."""
    place = 0
    for source in sources:
        for name in source.names:
            if source.is_list:
                yield place, build_list(source.path, source.videos, parameters)
            else:
                yield place, build_part(source.root + name, parameters)
            place += 1


def index_in_memory(
    sources: Sequence[Source], parameters: IndexParameters, most: int
) -> Index | None:
    """The index of at most `most` samples; None as soon as there are more."""
    merger = Merger()
    for place, part in build_parts(sources, parameters):
        merger.add(part, place)
        if merger.samples > most:
            return None
    header, columns = _finished(merger, sources)
    return Index(header, columns)


def write_index(
    path: Path,
    sources: Sequence[Source],
    parts: Iterable[tuple[int, Columns]],
    advance: Advance = lambda samples: None,
) -> None:
    """Merge parts to a file, which appears when it is complete. Needs twice its size on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    merger = Merger(path.parent)
    for place, part in parts:
        merger.add(part, place)
        advance(len(part["grains"]))
    write_columns(path, *_finished(merger, sources))


def _finished(merger: Merger, sources: Sequence[Source]) -> tuple[dict[str, Any], Columns]:
    names = [name for source in sources for name in source.names]
    header, columns = merger.finish(names, [size for source in sources for size in source.sizes])
    return header | {"sources": [describe(source) for source in sources]}, columns
