"""Embeddings as Parquet, for other programs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svilm_fast.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np


class FeatureFormat(StrEnum):
    """File format of embeddings."""

    NPZ = "npz"
    PARQUET = "parquet"


def require_pyarrow() -> None:
    """Raise UserError if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            "Parquet needs pyarrow, which is not installed: pip install 'svilm-fast[parquet]', or "
            "write --format npz"
        )


def write_parquet(
    path: Path, columns: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write embeddings as Parquet; equal values give equal bytes.

    columns: ids and captions [n] (text), videos and texts float32 [n, D], which become the columns
    id, caption (string), video and text (fixed-size lists of D float32); rows int64 [n], which may
    be absent, become the column row. metadata: texts that the schema keeps.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def vectors(rows: np.ndarray) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])

    found = {
        "id": pa.array(columns["ids"].tolist(), pa.string()),
        "caption": pa.array(columns["captions"].tolist(), pa.string()),
        "video": vectors(columns["videos"]),
        "text": vectors(columns["texts"]),
    }
    if "rows" in columns:
        found["row"] = pa.array(columns["rows"])
    table = pa.table(found)
    pq.write_table(table.replace_schema_metadata(dict(metadata)), path)
