"""Reads metrics.jsonl, tolerating damaged lines."""

from __future__ import annotations

import json
from typing import Any


def read_records(content: bytes) -> tuple[list[tuple[bytes, dict[str, Any]]], int]:
    """Return every line that holds a record, with the record, and the number of damaged lines.

    A record is a JSON object with an integer `step`, and with integers of at most 64 bits. A killed
    run may leave half a line, a bad disk or an editor anything. Empty lines are ignored.
    """
    records, damaged = [], 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            whole = isinstance(record, dict) and type(record.get("step")) is int
            whole = whole and all(
                abs(value) < 2**63 for value in record.values() if type(value) is int
            )
        except (ValueError, RecursionError):
            whole = False
        if whole:
            records.append((line, record))
        else:
            damaged += 1
    return records, damaged
