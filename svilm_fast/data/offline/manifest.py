"""The manifest of a folder of outputs: what was made of which input with which parameters.

A file of JSON lines. The first one holds the parameters and a digest of the input of all units;
every other line is one finished unit, written after its outputs are on disk. Only the process that
drives the work writes the file, and it holds a lock on it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from svilm_fast.data.offline.outputs import OfflineError, OutputFile, Outputs

_VERSION = 1


def digest(description: Any) -> str:
    """SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class FinishedUnit:
    """A finished unit: digest of its input, its outputs, and the report of the work (JSON)."""

    unit: str
    input: str
    outputs: list[OutputFile]
    report: dict[str, Any]

    def is_intact(self, folder: Path) -> bool:
        return all(file.is_intact(folder) for file in self.outputs)


class Manifest:
    """The open manifest of one run of off-line work."""

    def __init__(self, path: Path, file: BinaryIO, done: dict[str, FinishedUnit]) -> None:
        self.path = path
        self._file = file
        self.done = done  # by the unit's name

    @classmethod
    def open(
        cls, path: Path, kind: str, parameters: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Manifest:
        """Create the manifest, or continue one of the same work.

        Args:
            kind: name of the work, such as `pack`.
            parameters: JSON values that decide the outputs.
            inputs: for every unit, in order, the digest of its input.

        Raises OfflineError where the file belongs to other work, with the parameters that differ,
        or where another process has it open. Work that has written no file yet may be replaced.
        """
        header = {
            "manifest": f"svilm {kind}",
            "version": _VERSION,
            "parameters": json.loads(json.dumps(parameters)),
            "units": len(inputs),
            "inputs": digest(list(inputs.items())),
        }
        if not os.path.lexists(path):
            _create(path, kind, header)
        file = path.open("r+b")
        try:
            _lock(file, path)
            found, done = _read(file, path, header["manifest"])
            difference = _difference(found, header, done, inputs)
            if difference and any(unit.outputs for unit in done.values()):
                raise OfflineError(
                    f"{path} belongs to work that was started with other arguments: {difference}. "
                    "Start with the same arguments to continue it, or choose another folder"
                )
            if not difference:
                return cls(path, file, done)
            path.unlink()
        except BaseException:
            file.close()
            raise
        file.close()
        return cls.open(path, kind, parameters, inputs)

    def append(self, done: FinishedUnit) -> None:
        """Record a finished unit on disk."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(_line(asdict(done)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done[done.unit] = done

    def close(self) -> None:
        self._file.close()  # and release the lock


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _create(path: Path, kind: str, header: Mapping[str, Any]) -> None:
    outputs = Outputs(path.parent, kind)
    outputs.path(path.name).write_bytes(_line(header))
    try:
        outputs.publish()
    except OfflineError:  # another process was faster: `_lock` says so
        outputs.discard()


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OfflineError(f"{path} is in use by another process that writes here") from None


def _read(file: BinaryIO, path: Path, kind: str) -> tuple[dict[str, Any], dict[str, FinishedUnit]]:
    """Header and finished units. A last line that was cut off is removed."""
    content = file.read()
    whole = content.rfind(b"\n") + 1
    try:
        header, *lines = [json.loads(line) for line in content[:whole].splitlines()]
        if header["manifest"] != kind or header["version"] != _VERSION:
            raise ValueError
        done = {}
        for line in lines:
            outputs = [OutputFile(**output) for output in line["outputs"]]
            done[line["unit"]] = FinishedUnit(line["unit"], line["input"], outputs, line["report"])
    except (KeyError, TypeError, ValueError):
        raise OfflineError(
            f"{path} is no manifest of `{kind}` (version {_VERSION}), or is damaged: choose "
            "another folder"
        ) from None
    if whole < len(content):
        file.truncate(whole)
    return header, done


def _difference(
    found: Mapping[str, Any],
    header: Mapping[str, Any],
    done: Mapping[str, FinishedUnit],
    inputs: Mapping[str, str],
) -> str:
    """What differs between the work found and the work wanted; empty where nothing does."""
    old, new = found.get("parameters", {}), header["parameters"]
    changed = _changed("", old, new)
    if changed or found == header:
        return ", ".join(changed)
    text = "the input has changed"
    if found.get("units") != header["units"]:
        text += f" ({found.get('units')} units before, {header['units']} now)"
    other = next((name for name, unit in done.items() if inputs.get(name) != unit.input), None)
    return text + (f", for example that of {other}" if other else "")


def _changed(name: str, old: Any, new: Any) -> Sequence[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        pairs = [(f"{name}.{key}".lstrip("."), old.get(key), new.get(key)) for key in keys]
        return [text for pair in pairs for text in _changed(*pair)]
    return [] if old == new else [f"{name}={json.dumps(old)} before, {json.dumps(new)} now"]
