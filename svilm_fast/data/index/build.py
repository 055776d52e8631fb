"""Make the index of sources: parts in any order on any engine, then one file.

The parts are files in a folder beside the index, as long as it is not complete.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from svilm_fast.core.machine import usable_cores
from svilm_fast.data import files
from svilm_fast.data.errors import DataError
from svilm_fast.data.index.columns import (
    Columns,
    locked_file,
    read_columns,
    save_columns,
    write_columns,
)
from svilm_fast.data.index.file import Index
from svilm_fast.data.index.merge import Merger
from svilm_fast.data.index.part import IndexParameters, build_list, build_part, with_nouns
from svilm_fast.data.index.schema import VERSION
from svilm_fast.data.index.sources import Source, describe
from svilm_fast.data.lists import ListFile
from svilm_fast.data.offline.engines import OfflineEngine
from svilm_fast.data.offline.manifest import digest
from svilm_fast.data.offline.outputs import Outputs, remove_partials
from svilm_fast.data.offline.work import Unit, do_work

_MOST_WORKERS = 8
_WORTH_A_PROCESS = 8  # shards; the start of a process takes as long
_KIND = "index"
_INPUTS, _LOCK, _MANIFEST = "inputs", "lock", f"{_KIND}_manifest.jsonl"
_PART = re.compile(r"\d{6,}-\d{6,}\.part")

Ready = dict[int, Columns]  # parts without nouns, by the number of their shard


@dataclass(frozen=True)
class BuildEngine:
    """Where parts are built. workers: at a time (default: one per core, at most 8; Ray: all)."""

    kind: OfflineEngine = OfflineEngine.LOCAL
    workers: int | None = None

    def workers_for(self, units: int) -> int | None:
        if self.workers is not None or self.kind is not OfflineEngine.LOCAL:
            return self.workers
        return min(usable_cores(), _MOST_WORKERS, -(-units // _WORTH_A_PROCESS))


@dataclass(frozen=True)
class _Place:
    """A shard, a list with the folder of its videos, or a part that is built already."""

    path: str
    videos: str | None
    ready: Columns | None

    def absolute(self) -> _Place:
        """The same for processes that work in another folder."""
        videos = None if self.videos is None else _absolute(self.videos)
        return replace(self, path=_absolute(self.path), videos=videos)

    def parts(self, parameters: IndexParameters) -> Iterator[Columns]:
        if self.ready is not None:
            yield with_nouns(self.ready, parameters)
        elif self.videos is not None:
            yield from build_list(self.path, self.videos, parameters)
        else:
            yield build_part(self.path, parameters)


def _absolute(path: str) -> str:
    return path if files.protocol(path) else os.path.abspath(path)


def index_in_memory(
    sources: Sequence[Source], parameters: IndexParameters, most: int
) -> Index | Ready:
    """The index of at most `most` samples; where there are more, the parts of the first shards.

    Every row of a list counts as a sample.
    """
    merger, ready = Merger(), Ready()
    for number, place in enumerate(_places(sources, {})):
        if place.videos is not None and _has_more(place.path, most - merger.samples):
            return ready
        for part in place.parts(parameters):
            merger.add(part, number)
            if place.videos is None:
                ready[number] = part
        if merger.samples > most:
            return ready
    header, columns = _finished(merger, sources)
    return Index(header, columns)


def _has_more(path: str, rows: int) -> bool:
    return any(number >= rows for number, _ in enumerate(ListFile(path).rows()))


def write_index(
    path: Path,
    sources: Sequence[Source],
    parameters: IndexParameters,
    engine: BuildEngine | None = None,
    ready: Mapping[int, Columns] | None = None,
) -> None:
    """Write the index of sources to a file, which appears when it is complete.

    Killed and started again, it continues, and the bytes are those of a build that was not. Needs
    three times the size of the file on disk. ready: as `index_in_memory` gives them. Raises
    DataError where another process makes the same index, and where the sources change meanwhile.
    """
    engine = engine or BuildEngine()
    places = list(_places(sources, ready or {}))
    described = [
        [os.path.basename(source.path), name, *status]
        for source in sources
        for name, *status in zip(source.names, source.sizes, source.times, source.marks)
    ]
    units = [
        Unit(f"{number:06d}", place.absolute(), what)
        for number, (place, what) in enumerate(zip(places, described, strict=True))
    ]
    values = {"version": VERSION, **parameters.as_dict()}
    with _folder_of_parts(path, digest([values, described])) as folder:
        reports = do_work(
            _KIND,
            _build,
            units,
            parameters,
            folder,
            parameters=values,
            engine=engine.kind,
            workers=engine.workers_for(len(units)),
        )
        merger = Merger(path.parent)
        for number, report in enumerate(reports):
            for name in report["files"]:
                merger.add(read_columns(str(folder / name))[1], number)
        header, columns = _finished(merger, sources)
        for source in sources:
            if source.is_local and source.now() != source:
                raise DataError(f"{source.path} changed while it was indexed: start again")
        write_columns(path, header, columns)


def _build(name: str, place: _Place, parameters: IndexParameters, out: Outputs) -> dict[str, Any]:
    written = []
    for number, part in enumerate(place.parts(parameters)):
        written.append(f"{name}-{number:06d}.part")
        save_columns(out.path(written[-1]), {}, part)
    return {"files": written}


def _places(sources: Sequence[Source], ready: Mapping[int, Columns]) -> Iterator[_Place]:
    number = 0
    for source in sources:
        for name in source.names:
            path = source.path if source.is_list else source.root + name
            videos = source.videos if source.is_list else None
            yield _Place(path, videos, ready.get(number))
            number += 1


def _finished(merger: Merger, sources: Sequence[Source]) -> tuple[dict[str, Any], Columns]:
    header, columns = merger.finish(
        [name for source in sources for name in source.names],
        [size for source in sources for size in source.sizes],
        [mark for source in sources for mark in source.marks],
    )
    return header | {"sources": [describe(source) for source in sources]}, columns


@contextlib.contextmanager
def _folder_of_parts(path: Path, inputs: str) -> Iterator[Path]:
    """The folder of the parts of an index; parts of other inputs are removed, and all at the end.

    It stays where the block raises, so that the next start continues.
    """
    folder = path.with_suffix(".parts")
    with _locked(folder):
        known = folder / _INPUTS
        if not known.is_file() or known.read_text() != inputs:
            _clear(folder)
            out = Outputs(folder, _KIND)
            out.path(_INPUTS).write_text(inputs)
            out.publish()
        yield folder
        _clear(folder)
        (folder / _LOCK).unlink()
        with contextlib.suppress(OSError):  # something of somebody else lies in it
            folder.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    in_use = f"another process makes this index in {folder}: wait for it"
    with contextlib.ExitStack() as stack:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            # Another process that is ready removes the folder.
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(locked_file(folder / _LOCK, in_use))
                break
        yield


def _clear(folder: Path) -> None:
    """Remove what a build wrote, but its lock."""
    (folder / _INPUTS).unlink(missing_ok=True)  # first: without it, nothing else counts
    remove_partials(folder, _KIND)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if name == _MANIFEST or _PART.fullmatch(name):
            (folder / name).unlink()
