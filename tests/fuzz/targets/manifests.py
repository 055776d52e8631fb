"""Checkpoint manifests with any content: all damage is found, and nothing else is reported."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from svilm_fast.train.folder.manifest import MANIFEST, damage_of, read_manifest, write_manifest

from ..engine import Target
from ..texts import damaged, damaged_json

_FILES = {"state.json": b"{}", "model/weights.bin": bytes(range(200)), "empty": b""}


@functools.cache
def _manifest() -> dict:
    with tempfile.TemporaryDirectory() as name:
        _write(Path(name))
        return json.loads((Path(name) / MANIFEST).read_text())


def _write(folder: Path) -> None:
    for name, data in _FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    write_manifest(folder)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[bytes | None, str | None, bytes]:
    """The manifest's bytes (None: unchanged), and changed bytes for a file of the checkpoint."""
    manifest = draw(st.one_of(st.none(), damaged_json(_manifest())))
    name = draw(st.sampled_from([None, *_FILES]))
    return manifest, name, draw(damaged(_FILES[name])) if name else b""


def check(case: tuple[bytes | None, str | None, bytes], folder: Path) -> None:
    manifest, name, data = case
    checkpoint = folder / "step_00000001"
    checkpoint.mkdir()
    _write(checkpoint)
    if manifest is not None:
        (checkpoint / MANIFEST).write_bytes(manifest)
    files = dict(_FILES)
    if name is not None:
        files[name] = data
        (checkpoint / name).write_bytes(data)
    reason = damage_of(checkpoint, required=lambda _: list(_FILES))
    assert reason is None or reason.strip()
    if manifest is None:
        # Unchanged files are accepted.
        assert (reason is None) == (files == _FILES), reason
    if reason is None:
        listed = read_manifest(checkpoint)
        assert set(_FILES) <= set(listed), "a file that is needed is not listed"
        for found, entry in listed.items():
            assert found in files, f"{found!r} is no file of the checkpoint"
            assert entry["bytes"] == len(files[found]), found
            assert entry["sha256"] == hashlib.sha256(files[found]).hexdigest(), found
    shutil.rmtree(checkpoint)


TARGET = Target("manifests", _cases(), check, short=60)
