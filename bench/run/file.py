"""Result files: reading with checks, and atomic writing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svilm_fast.bench.run.record import SCHEMA, Record
from svilm_fast.core.files import json_text, write_atomically


@dataclass(frozen=True)
class Results:
    """One run: its environment, the ceilings it measured, and its records by id."""

    path: Path
    environment: Mapping[str, Any]
    ceilings: Mapping[str, float]
    records: Mapping[str, Record]
    complete: bool = True
    """Whether the run reached its end."""
    ratios: Sequence[Mapping[str, Any]] = ()
    """From `svilm bench peers`: time over ours, from interleaved rounds."""

    @property
    def fingerprint(self) -> str:
        """Hash of what comparable runs share; empty if the file has none."""
        return str(self.environment.get("fingerprint") or "")

    @property
    def dirty(self) -> bool:
        """Whether uncommitted code was measured, or the commit is unknown."""
        return bool(self.environment.get("dirty", True)) or not self.environment.get("commit")


def read_results(path: Path) -> Results:
    """Read one file; raises ValueError if it is not a result file."""
    if not path.is_file():
        raise ValueError(f"no result file {path}: make one with `svilm bench run --out {path}`")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise ValueError(f"{path} is not a result file of schema {SCHEMA} (its schema: {found})")
    records: dict[str, Record] = {}
    for written in content.get("records") or ():
        try:
            record = Record.from_json(written)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if record.id in records:
            raise ValueError(f"{path} contains {record.id} twice")
        records[record.id] = record
    if not records:
        raise ValueError(f"{path} contains no record: nothing was measured")
    environment = content.get("environment") or {}
    ceilings, ratios = content.get("ceilings") or {}, content.get("ratios") or ()
    complete = bool(content.get("complete", True))
    return Results(path, environment, ceilings, records, complete, ratios)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths name the same file, which need not exist yet."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def check_replaceable(path: Path) -> None:
    """Raise ValueError if another kind of file would be overwritten."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError(
            f"{path} is not a result file and would be overwritten: give another --out"
        )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a result file, also over an earlier one.

    Raises ValueError over another kind of file; call `check_replaceable` before a long run.
    """
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json_text(value, indent=1)
    if path.exists() and not path.is_file():
        path.write_text(content)  # a device or a pipe
    else:
        write_atomically(path.resolve(), content.encode())
