"""Result files: read and checked; whole at every moment, whatever ends the run that writes."""

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
    """Whether the run came to its end."""
    ratios: Sequence[Mapping[str, Any]] = ()
    """Of `svilm bench peers`: providers over ours, from rounds in which both took turns."""

    @property
    def fingerprint(self) -> str:
        """Hash of what must be equal for two runs to be comparable; empty where it is missing."""
        return str(self.environment.get("fingerprint") or "")

    @property
    def dirty(self) -> bool:
        """Whether the run's commit does not say what was measured."""
        return bool(self.environment.get("dirty", True)) or not self.environment.get("commit")


def read_results(path: Path) -> Results:
    """Read one file; raises ValueError that names what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"no result file {path}: make one with `svilm bench run --out {path}`")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise ValueError(f"{path} is no result file of schema {SCHEMA} (its schema: {found})")
    records: dict[str, Record] = {}
    for written in content.get("records") or ():
        try:
            record = Record.from_json(written)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if record.id in records:
            raise ValueError(f"{path} holds {record.id} twice")
        records[record.id] = record
    if not records:
        raise ValueError(f"{path} holds no record: nothing was measured")
    environment = content.get("environment") or {}
    ceilings, ratios = content.get("ceilings") or {}, content.get("ratios") or ()
    complete = bool(content.get("complete", True))
    return Results(path, environment, ceilings, records, complete, ratios)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, which need not exist yet."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def check_replaceable(path: Path) -> None:
    """Raise ValueError where a file is there that is no result file and would be overwritten."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError(f"{path} is no result file and would be overwritten: give another --out")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a result file in place of the one that is there.

    Raises ValueError where that is none; call `check_replaceable` before what takes long.
    """
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json_text(value, indent=1)
    if path.exists() and not path.is_file():
        path.write_text(content)  # a device or a pipe
    else:
        write_atomically(path.resolve(), content.encode())
