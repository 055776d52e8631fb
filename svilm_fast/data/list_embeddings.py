"""Stored embeddings of a list: `<list>.embeddings` beside it, one row per sample, mapped.

The file has the format of `index.columns`: `vector`, float32 [n * D], in the order of the list's
samples in its index. The header says what the rows belong to (`ListIdentity`), so that they are
refused when the list or the set of its videos has changed. A row of NaN is a sample without an
embedding.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from svilm_fast.data import files
from svilm_fast.data.errors import DataError, EmbeddingError
from svilm_fast.data.index.columns import read_columns, write_columns

SUFFIX = ".embeddings"
_VERSION = 2  # 1 did not say which videos the rows belong to
_KIND = "stored embeddings"
_AGAIN = "make it again with `svilm embed LIST --store`"


@dataclass(frozen=True)
class ListIdentity:
    """What the rows belong to.

    samples: rows in the list's index. checksum: CRC-32 of the list's bytes. rows: digest of the
    video and segment of every row, in order; a list whose videos are not all there has fewer rows.
    """

    samples: int
    checksum: int
    rows: str


def check_storable(path: str) -> None:
    """Raise EmbeddingError where no embeddings can be stored beside the list `path`.

    That is so for a remote list, a folder that cannot be written, and where the file is there and
    holds something else.
    """
    if files.protocol(path) is not None:
        raise EmbeddingError(f"{path}: embeddings are stored beside a list on a local disk alone")
    out = Path(path + SUFFIX)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise EmbeddingError(f"{out}: {out.parent} is no folder that can be written")
    if not os.path.lexists(out):
        return
    try:
        is_ours = read_columns(str(out))[0].get("kind") == _KIND
    except (OSError, DataError):
        is_ours = False
    if not is_ours:
        raise EmbeddingError(f"{out} exists and holds no stored embeddings: move it away")


def write_list_embeddings(path: str, identity: ListIdentity, vectors: np.ndarray) -> Path:
    """Write `vectors`, [n, D], beside the list `path`, also over those of an earlier run.

    Raises EmbeddingError for another number of rows, and as `check_storable` does.
    """
    check_storable(path)
    rows = np.asarray(vectors, "<f4")
    if rows.ndim != 2 or len(rows) != identity.samples or not rows.shape[1]:
        raise EmbeddingError(
            f"{path}: vectors of shape {list(rows.shape)}, expected [{identity.samples}, D]"
        )
    out = Path(path + SUFFIX)
    header = {"kind": _KIND, "version": _VERSION, "width": rows.shape[1], **vars(identity)}
    write_columns(out, header, {"vector": rows.reshape(-1)})
    return out


def open_list_embeddings(path: str, identity: ListIdentity, width: int) -> np.ndarray:
    """The stored embeddings of the list `path`, mapped float32 [n, width].

    Raises EmbeddingError where there are none, or those of another list, width or version.
    """
    stored = path + SUFFIX
    if files.protocol(path) is not None or not os.path.isfile(stored):
        raise EmbeddingError(f"{path}: no stored embeddings in {stored}: {_AGAIN}")
    try:
        header, columns, _ = read_columns(stored)
    except DataError as error:
        raise EmbeddingError(f"{stored}: no stored embeddings ({error}): {_AGAIN}") from None
    if header.get("kind") != _KIND:
        raise EmbeddingError(f"{stored}: no stored embeddings: {_AGAIN}")
    if header.get("version") != _VERSION:
        raise EmbeddingError(
            f"{stored}: stored embeddings of version {header.get('version')!r}, not {_VERSION}: "
            f"{_AGAIN}"
        )
    if {name: header.get(name) for name in vars(identity)} != vars(identity):
        raise EmbeddingError(f"{stored}: the list or its videos have changed since: {_AGAIN}")
    if header.get("width") != width:
        raise EmbeddingError(f"{stored}: vectors of {header.get('width')} numbers, not {width}")
    vectors = columns.get("vector", np.empty(0, "<f4"))
    if vectors.dtype != np.dtype("<f4") or len(vectors) != identity.samples * width:
        raise EmbeddingError(f"{stored}: damaged: {_AGAIN}")
    return vectors.reshape(-1, width)
