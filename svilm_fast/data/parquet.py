"""Rows of Parquet files, a batch of them in memory at a time."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterator
from typing import Any

from svilm_fast.data import files
from svilm_fast.data.errors import ListFormatError

_ROWS = 10_000  # read together
_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)


def parquet_blocks(path: str) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """(number of the row, from 1, and its cells by column name) of a Parquet file, many at a time.

    Cells are JSON values: numbers that are not finite are None, times and decimals are texts.
    Raises ListFormatError for other cells and where the file cannot be read.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ListFormatError(
            f"{path}: Parquet needs pyarrow, which is not installed: pip install "
            "'svilm-fast[parquet]', or give the list as JSONL"
        ) from None
    number = 0
    try:
        with files.opened(path) as stream, parquet.ParquetFile(stream) as table:
            for batch in table.iter_batches(batch_size=_ROWS):
                block = []
                for row in batch.to_pylist():
                    number += 1
                    label = f"{path}, line {number}"
                    block.append(
                        (number, {name: _json(cell, label, name) for name, cell in row.items()})
                    )
                if block:
                    yield block
    except (arrow.ArrowException, OSError) as error:
        raise ListFormatError(
            f"{path}: cannot be read as Parquet behind row {number}: {error}"
        ) from None


def _json(cell: Any, label: str, name: str) -> Any:
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    if cell is None or isinstance(cell, str | int):
        return cell
    if isinstance(cell, _AS_TEXT):
        return str(cell)
    if isinstance(cell, list):
        return [_json(each, label, name) for each in cell]
    if isinstance(cell, dict):
        return {key: _json(each, label, name) for key, each in cell.items()}
    raise ListFormatError(f"{label}, field {name!r}: {type(cell).__name__} is no JSON value")
