"""Index files of a data set, of any content: refused, or rows inside their columns."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from svilm_fast.data.config import LimitsConfig, build_data_config
from svilm_fast.data.errors import DataError
from svilm_fast.data.index.columns import MAGIC, read_columns, write_columns
from svilm_fast.data.index.file import Index
from svilm_fast.data.index.part import IndexParameters
from svilm_fast.data.index.schema import GRAINS
from svilm_fast.data.index.sources import difference, read_sources
from svilm_fast.data.index.store import make_index
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.shards import ShardWriter

from ..engine import Target
from ..texts import damaged, damaged_json

_RECORDS = [
    {"caption": "a dog"},
    {"captions": {"coarse": "a cat", "fine": ["a red cat", "a boat"]}, "caption_weights": 1},
    {"caption": ["a kite", "no"], "caption_weights": [1, 2], "label": 3, "segment": [0.5, 2]},
    {"caption": 7},
]


def _write_shards(folder: str) -> None:
    with ShardWriter(folder, max_samples=2) as writer:
        for number, record in enumerate(_RECORDS):
            members = {"mp4": b"video", "json": json.dumps(record).encode()}
            writer.write(f"s{number}", members)


@functools.cache
def _made() -> tuple[bytes, dict[str, Any], dict[str, np.ndarray]]:
    """The bytes of a valid index, its header and its columns."""
    with tempfile.TemporaryDirectory() as name:
        _write_shards(name)
        parameters = IndexParameters.of(build_data_config(), nouns=True)
        path = make_index(read_sources([name], None), parameters)
        header, columns, _ = read_columns(str(path))
        return path.read_bytes(), header, {n: np.array(c) for n, c in columns.items()}


_NUMBERS = st.sampled_from([-(2**63), -2, -1, 0, 1, 2, 3, 99, 2**31, 2**32 - 1, 2**63 - 1])


@st.composite
def _files(draw: st.DrawFn) -> bytes | tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Bytes of a file, or a header and columns whose numbers, lengths and dtypes are changed."""
    data, header, columns = _made()
    kind = draw(st.sampled_from(["bytes", "header", "columns", "columns"]))
    if kind == "bytes":
        return draw(damaged(data))
    if kind == "header":
        length = int.from_bytes(data[8:16], "little")
        text = draw(damaged_json(json.loads(data[16 : 16 + length])))
        start, old = -(-(16 + len(text)) // 64) * 64, -(-(16 + length) // 64) * 64
        head = MAGIC + len(text).to_bytes(8, "little") + text
        return head.ljust(start, b"\0") + data[old:]
    columns = {name: column.copy() for name, column in columns.items()}
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(sorted(columns)))
        column = columns[name]
        change = draw(st.sampled_from(["set", "set", "set", "fill", "drop", "cut", "dtype"]))
        with contextlib.suppress(OverflowError, IndexError):
            if change == "set":
                column[draw(st.integers(0, 9))] = draw(_NUMBERS)
            elif change == "fill":
                column[:] = draw(_NUMBERS)
        if change == "drop":
            del columns[name]
        elif change == "cut":
            columns[name] = column[: draw(st.integers(0, len(column)))]
        elif change == "dtype":
            columns[name] = column.astype(draw(st.sampled_from(["u1", "<u4", "<i8", "<f8"])))
    return header, columns


def check(case: bytes | tuple[dict[str, Any], dict[str, np.ndarray]], folder: Path) -> None:
    path = folder / "x.bin"
    if isinstance(case, bytes):
        path.write_bytes(case)
    else:
        write_columns(path, *case)
    index = Index.open(str(path))
    _write_shards(str(folder / "shards"))
    sources = read_sources([str(folder / "shards")], None)
    with contextlib.suppress(DataError):
        difference(sources, index.header, index.columns, path.stat().st_mtime, moved=True)
    for grain in GRAINS:
        table = SampleTable(index, [(0, sources[0].root)], grain, LimitsConfig())
        assert len(table) <= len(_RECORDS)
        if len(table):
            for read in _reads(table):
                with contextlib.suppress(DataError):
                    read()


def _reads(table: SampleTable) -> Iterator[Callable[[], object]]:
    """Everything that a table answers."""
    yield lambda: (list(table.ids), table.keys, table.notes, table.noun_notes)
    yield lambda: table.rejected
    yield table.shard_samples
    yield lambda: table.contents
    yield lambda: table.select([0]).contents
    yield lambda: table.select([0]).fingerprint
    yield lambda: list(table.captions())
    of_sample = [table.__getitem__, table.annotations, table.read_video, table.read_metadata]
    for place in range(len(table)):
        yield from (functools.partial(read, place) for read in of_sample)
        yield functools.partial(table.read_embedding, place, 4)
        yield functools.partial(_weights, table, place)


def _weights(table: SampleTable, place: int) -> None:
    rows = table.captions_of(place)
    weights = table.caption_weights(rows)
    assert weights is None or len(weights) == len(rows)


TARGET = Target("data_index", _files(), check, short=80, prepare=_made)
