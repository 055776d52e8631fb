"""The manifest of a checkpoint: size and SHA-256 of every file. It is written last.

A disk, a copy or a person may have changed a checkpoint. Any difference from what this package
wrote makes it a damaged checkpoint, which a resume skips.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from svilm_fast.core.files import sync, write_json
from svilm_fast.train.folder.files import read_json, sha256_of

MANIFEST = "manifest.json"
LATEST = "latest"  # names the newest checkpoint, for DeepSpeed
FORMAT = 1
LONGEST_NAME, LONGEST_PART = 1024, 255  # bytes of a path, and of each of its parts
TAG = re.compile(r"step_\d{8,}")
# The names that a save writes, including temporary files: ours, and those of safetensors
# (.tmpXXXXXX).
SAVED = re.compile(
    r"(bf16_)?(zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt"
    r"|(random|ema)_rank_\d+\.safetensors|data_rank_\d+\.json|trainer_state\.json"
    r"|(model|optimizer|ema)\.safetensors|state\.json|manifest\.json|config\.yaml|tokenizer\.json"
    r"|\.[\w.]+\.\d+\.tmp|\.tmp[A-Za-z0-9]{6}"
)

Required = Callable[[Path], Iterable[str]]


def tags_in(folder: Path) -> list[str]:
    """Return the names of complete and incomplete checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if TAG.fullmatch(path.name)]
    return sorted(names, key=lambda name: (len(name), name), reverse=True)


def committed_tags(folder: Path) -> list[str]:
    """Return the tags that have a manifest, newest first."""
    return [tag for tag in tags_in(folder) if os.path.isfile(folder / tag / MANIFEST)]


def was_committed(folder: Path) -> bool:
    """Return whether a checkpoint was once complete, even if its manifest is now damaged.

    Raises OSError if the folder cannot be read.
    """
    return MANIFEST in os.listdir(folder)


def write_manifest(folder: Path) -> None:
    """Commit a checkpoint: flush every file to disk, then record its size and SHA-256.

    Without the flush, a power cut could leave a manifest of files that were never written, when the
    previous checkpoint is already removed. Storage that reports a full disk late does so here.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            sync(path)
            digest = sha256_of(path)
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": digest}
    sync(folder)
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the files that a manifest lists. Raises ValueError if it is damaged."""
    content = read_json(folder / MANIFEST)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is damaged (not a manifest)")
    if not files:
        raise ValueError(f"{MANIFEST} lists no files")
    for name, entry in files.items():
        if not is_inside(name):
            raise ValueError(f"{MANIFEST} is damaged (the name {name[:60]!r})")
        whole = isinstance(entry, dict) and type(entry.get("bytes")) is int
        if not whole or not isinstance(entry.get("sha256"), str):
            raise ValueError(f"{MANIFEST} is damaged (the entry of {name[:60]!r})")
    return files


def is_inside(name: str) -> bool:
    """Return whether a listed name is a relative path of allowed length that stays inside."""
    path = PurePosixPath(name)
    try:
        lengths = [len(os.fsencode(part)) for part in path.parts]
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    short = sum(lengths) < LONGEST_NAME and max(lengths, default=0) <= LONGEST_PART
    plain = bool(lengths) and "\0" not in name and ".." not in path.parts
    return short and plain and not path.is_absolute()


def damage_of(folder: Path, *, required: Required) -> str | None:
    """Return why a checkpoint is invalid, or None if every byte is unchanged.

    required: called with the folder after its files are verified; returns the names it must hold.
    """
    try:
        if not was_committed(folder):
            return f"its save did not complete (no {MANIFEST})"
        files = read_manifest(folder)
        for name, expected in files.items():
            reason = _problem_with_file(folder / name, expected)
            if reason is not None:
                return f"{name} {reason}"
        missing = sorted(set(required(folder)) - set(files))
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error}: {error.filename})"
    return f"{MANIFEST} does not list {missing[0]}" if missing else None


def _problem_with_file(path: Path, expected: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != expected["bytes"]:
        return f"has {size} bytes instead of {expected['bytes']}"
    if sha256_of(path) != expected["sha256"]:
        return "has changed since it was written"
    return None


def refuse_link(folder: Path) -> None:
    """Raise OSError if the folder is a symbolic link: its target does not belong to the run."""
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link, which no run creates", str(folder))


def remove_listed(folder: Path) -> None:
    """Remove the manifest of a checkpoint and the files that it lists; other files stay.

    Raises OSError for a symbolic link, and ValueError for a damaged manifest.
    """
    refuse_link(folder)
    files = read_manifest(folder)
    (folder / MANIFEST).unlink()
    for name in files:
        # Files behind a linked folder do not belong to the checkpoint.
        if not any((folder / part).is_symlink() for part in PurePosixPath(name).parents[:-1]):
            (folder / name).unlink(missing_ok=True)
    for inner in sorted((folder / name).parent for name in files):
        with contextlib.suppress(OSError):  # not empty, or removed with another file
            inner.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
