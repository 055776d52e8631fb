"""Stored embeddings: the member `embedding.npy` of a sample, one vector of a fixed width."""

from __future__ import annotations

import io

import numpy as np

from svilm_fast.data.errors import EmbeddingError

MEMBER = "embedding.npy"
_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))
_HEADER_BYTES = 1 << 16


def most_bytes(width: int) -> int:
    """Bytes that a file with a vector of `width` numbers may have."""
    return _HEADER_BYTES + 4 * width


def read_vector(data: bytes, width: int, label: str) -> np.ndarray:
    """A float16 or float32 vector of a .npy file as float32 [width].

    Only the header is parsed, as a literal; nothing is unpickled. Raises EmbeddingError.
    """
    stream = io.BytesIO(data)
    form = np.lib.format
    readers = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}
    try:
        shape, _, dtype = readers[form.read_magic(stream)](stream)
    except (ValueError, KeyError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise EmbeddingError(f"{label}: {MEMBER} is not a NumPy array file") from None
    body = data[stream.tell() :]
    if dtype not in _DTYPES or shape != (width,) or len(body) != width * dtype.itemsize:
        found = " x ".join(map(str, shape)) or "no dimension"
        raise EmbeddingError(
            f"{label}: {MEMBER} holds {dtype} [{found}] in {len(body)} bytes, expected float16 or "
            f"float32 [{width}]"
        )
    vector = np.frombuffer(body, dtype).astype(np.float32)
    if not np.isfinite(vector).all():
        raise EmbeddingError(f"{label}: {MEMBER} holds numbers that are not finite")
    return vector
