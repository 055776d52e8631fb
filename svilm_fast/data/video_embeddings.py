"""Embeddings that `svilm embed` wrote, read in place of videos or as those of a teacher."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from svilm_fast.core.messages import single_line
from svilm_fast.data.errors import DataError, EmbeddingError
from svilm_fast.data.keys import sample_key

# The local header of a zip member: 26 bytes, then the lengths of its name and extra field.
_LOCAL_HEADER = 30


class VideoEmbeddings:
    """Embeddings by sample, float32 [D], mapped from the .npz files of a folder.

    Only the samples' keys are held in memory, 16 bytes a sample; ids are those of the shards that
    were embedded. `tower` is the digest of the video tower that wrote them. texts: also those of
    the samples' first captions. Raises DataError for a folder without such files, files of another
    width than `width` or of several towers, and samples that occur twice.
    """

    def __init__(self, folder: str | Path, width: int, *, texts: bool = False) -> None:
        self.folder, self.width, self.texts = Path(folder), width, texts
        files = sorted(self.folder.glob("*.npz"))
        name = "teacher_embeddings" if texts else "video_embeddings"
        if not files:
            raise DataError(
                f"data.{name}: no .npz files in {str(folder)!r}; write them "
                "with `svilm embed SHARDS --run RUN --out FOLDER`"
            )
        members = ("videos", "texts") if texts else ("videos",)
        parts = [_opened(file, width, members) for file in files]
        self.tower = parts[0].tower
        for file, part in zip(files, parts, strict=True):
            if part.tower != self.tower:
                raise DataError(
                    f"data.{name}: {files[0]} and {file} were written by different video "
                    "towers; keep the embeddings of each in a folder of its own"
                )
        keys = np.concatenate([part.keys for part in parts])
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        if len(keys) and (self.keys[1:] == self.keys[:-1]).any():
            raise DataError(f"{str(folder)!r} holds embeddings of one sample twice")
        self._rows = order
        self._starts = np.cumsum([0, *(len(part.keys) for part in parts)])
        self._tables: list[list[Any]] = [part.tables for part in parts]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, key: int, name: str) -> np.ndarray:
        """The embedding of the sample with this key. Raises EmbeddingError."""
        return self._read(key, name, 0)

    def read_text(self, key: int, name: str) -> np.ndarray:
        """The embedding of the first caption of the sample. Raises EmbeddingError."""
        return self._read(key, name, 1)

    def _read(self, key: int, name: str, member: int) -> np.ndarray:
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            raise EmbeddingError(f"{name}: no embedding in {str(self.folder)!r}")
        row = int(self._rows[place])
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        vector = np.array(self._tables[file][member][row - self._starts[file]])
        if not np.isfinite(vector).all():
            raise EmbeddingError(f"{name}: its embedding holds numbers that are not finite")
        return vector

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the files again.
        return {"folder": self.folder, "width": self.width, "texts": self.texts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Part(NamedTuple):
    """A file: keys int64 [n] of its samples, embeddings [n, D] of each member, and their tower."""

    keys: np.ndarray
    tables: list[np.ndarray]
    tower: str


def _opened(file: Path, width: int, members: Sequence[str]) -> _Part:
    try:
        with np.load(file, allow_pickle=False) as columns:
            ids = columns["ids"]
            tower = str(columns["tower"]) if "tower" in columns else None
        with zipfile.ZipFile(file) as archive:
            tables = [_mapped(file, archive.getinfo(f"{name}.npy")) for name in members]
            captions = None
            if "texts" in members:
                captions = _mapped(file, archive.getinfo("captions.npy"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, struct.error) as error:
        raise DataError(f"{file} was not written by `svilm embed`: {single_line(error)}") from None
    for table in tables:
        if table.shape != (len(ids), width) or table.dtype != np.float32:
            raise DataError(
                f"{file} holds {table.dtype} {list(table.shape)}, expected float32 [{len(ids)}, "
                f"{width}]: it was written by a model of another model.embed_dim"
            )
    if captions is not None and len(captions) and not captions[0]:
        raise DataError(
            f"{file} was written with `svilm embed --captions none`: its texts are embeddings of "
            "empty captions. Embed the samples with their captions, or set texts=false in the "
            "objective and data.teacher_embeddings=stored"
        )
    if tower is None:
        raise DataError(
            f"{file} does not say which video tower wrote it, as files of an earlier version: "
            "embed the videos again, into a new folder"
        )
    return _Part(np.array([sample_key(name) for name in ids.tolist()], np.int64), tables, tower)


def _mapped(file: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """Map a member that is stored without compression, as np.savez does."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("videos.npy is compressed")
    with file.open("rb") as stream:
        stream.seek(member.header_offset + _LOCAL_HEADER - 4)
        stream.seek(sum(struct.unpack("<HH", stream.read(4))), 1)
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"videos.npy has the format {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        start = stream.tell()
    if not shape or 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")
