"""Embeddings as Parquet: columns, empty tables, and rows of a list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from svilm_fast.inference.features import write_parquet


@pytest.mark.parametrize("count", [0, 3])
def test_columns(tmp_path: Path, count: int) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    videos = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    columns = {
        "ids": np.array([f"clip {row}" for row in range(count)], dtype=np.str_),
        "captions": np.array(["é"] * count, dtype=np.str_),
        "videos": videos,
        "texts": -videos,
        "rows": np.arange(count)[::-1].copy(),
    }
    write_parquet(tmp_path / "x.parquet", columns, {"step": "7"})
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["id", "caption", "video", "text", "row"]
    assert table.schema.field("video").type == pa.list_(pa.float32(), 4)
    assert table["video"].to_pylist() == videos.tolist()
    assert table["text"].to_pylist() == (-videos).tolist()
    assert table["row"].to_pylist() == list(range(count))[::-1]
    assert table["caption"].to_pylist() == ["é"] * count
    del columns["rows"]
    write_parquet(tmp_path / "y.parquet", columns, {})
    assert pq.read_table(tmp_path / "y.parquet").column_names == ["id", "caption", "video", "text"]
