"""Reads a result file of `svilm bench run` and refuses what is not one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Results:
    """One run: its environment, the ceilings it measured, and its records by id."""

    path: Path
    environment: Mapping[str, Any]
    ceilings: Mapping[str, float]
    records: Mapping[str, Mapping[str, Any]]
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
    records: dict[str, Mapping[str, Any]] = {}
    for record in content.get("records") or ():
        if not isinstance(record, dict) or not {"id", "status"} <= record.keys():
            raise ValueError(f"{path}: a record lacks id or status: {str(record)[:80]}")
        if record["id"] in records:
            raise ValueError(f"{path} holds {record['id']} twice")
        records[record["id"]] = record
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


def figure(record: Mapping[str, Any], name: str) -> float | None:
    """A positive finite number of a record that went well; None for anything else."""
    value = record.get(name)
    if record["status"] != "ok" or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def skipped(record: Mapping[str, Any]) -> bool:
    """Whether the benchmark could not run there and nothing is wrong."""
    return str(record["status"]).startswith("skipped")
