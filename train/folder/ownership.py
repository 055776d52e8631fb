"""Records which files of a run folder this package wrote.

`run.json` marks the folder of a run. `run.files` lists its files as JSON strings, one per line,
with paths relative to the folder. A path that ends in `/` is the folder of a checkpoint, in which
the run owns the files that a save writes. Lines are only appended, so that training, evaluation and
report can write at the same time, and a crash damages only the last line. A file that is not listed
is never removed or overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from svilm_fast.core.errors import UserError
from svilm_fast.core.files import write_json
from svilm_fast.train.config.run_files import LOCK_FILE, RunFiles
from svilm_fast.train.folder.files import read_json
from svilm_fast.train.folder.manifest import MANIFEST, SAVED, is_inside, read_manifest

FORMAT = "svilm_fast run"
SHOWN = 5


def is_run(files: RunFiles) -> bool:
    """Return whether the folder is marked as a run of this package."""
    if not _is_own_file(files.manifest):
        return False
    try:
        content = read_json(files.manifest)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def mark(files: RunFiles, created: str) -> None:
    """Mark the folder as a run, before any other file of the run is written."""
    write_json(files.manifest, {"format": FORMAT, "created": created, "files": files.owned.name})


def listed(files: RunFiles) -> set[str]:
    """Return the listed paths, without damaged lines and paths outside of the folder."""
    paths = set()
    for line in files.owned.read_bytes().splitlines() if _is_own_file(files.owned) else ():
        try:
            name = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(name, str) and is_inside(name):
            paths.add(name)
    return paths


def claim(files: RunFiles, *paths: Path, saves: Iterable[Path] = ()) -> None:
    """Add files that will be written, and folders of checkpoints (`saves`), to the list.

    Does nothing in a folder without the mark of a run, such as the run of an older version. Raises
    UserError if the list is a link or not a file.
    """
    if not is_run(files):
        return
    names = [path.relative_to(files.root).as_posix() for path in paths]
    names += [path.relative_to(files.root).as_posix() + "/" for path in saves]
    known = listed(files)
    new = [name for name in names if name not in known]
    if not new:
        return
    text = "".join(f"{json.dumps(name)}\n" for name in new)
    if os.path.lexists(files.owned) and not _is_own_file(files.owned):
        raise UserError(
            f"{files.owned} is a link or not a regular file, which no run creates: remove it"
        )
    ends = not files.owned.is_file() or files.owned.read_bytes()[-1:] in (b"", b"\n")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    handle = os.open(files.owned, flags, 0o666)
    try:
        left = (text if ends else f"\n{text}").encode()
        while left:  # a write can be partial on a full disk
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def owned(files: RunFiles) -> list[Path]:
    """Return the existing files that the run wrote, without links and files behind links."""
    found = []
    for name in listed(files):
        path = files.root / name
        inside = _saved_files(path) if name.endswith("/") else [path]
        found += [file for file in inside if file.is_file() and _is_plain(files.root, file)]
    return sorted(set(found))


def foreign(files: RunFiles) -> list[Path]:
    """Return the files and links in the folder that its run did not write."""
    own = {files.manifest, files.owned, files.root / LOCK_FILE, *owned(files)}
    found = []
    for folder, folders, names in os.walk(files.root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [Path(folder) / name for name in (*names, *links)]
    return sorted(path for path in found if path not in own)


def named(files: RunFiles, paths: Iterable[Path]) -> str:
    """Return paths below the folder as a short text for a message."""
    names = [path.relative_to(files.root).as_posix() for path in paths]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_not_foreign(files: RunFiles, paths: Collection[Path]) -> None:
    """Raise UserError if one of the files exists and the run did not write it.

    A link, or a file behind a link inside the folder, never belongs to the run.
    """
    own = listed(files)
    behind = [path for path in paths if not _is_plain(files.root, path)]
    if behind:
        raise UserError(
            f"{files.root}: {named(files, behind)} would be written through a symbolic link that "
            "this package did not create; remove the link, or replace it by a folder"
        )
    others = [
        path
        for path in paths
        if os.path.lexists(path) and path.relative_to(files.root).as_posix() not in own
    ]
    if others:
        why = "" if is_run(files) else " (without run.json there is no list of the run's files)"
        raise UserError(
            f"{files.root}: {named(files, others)} would be overwritten, but this package did not "
            f"write it{why}; move it away, or choose another name"
        )


@contextmanager
def placed(files: RunFiles, folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files move to `folder` at the end of the block.

    Raises UserError, and moves nothing, if a file would replace one that the run did not write.
    """
    drafts = Path(tempfile.mkdtemp(prefix=".writing-", dir=files.root))
    try:
        yield drafts
        made = sorted(path for path in drafts.rglob("*") if path.is_file())
        targets = [folder / path.relative_to(drafts) for path in made]
        check_not_foreign(files, targets)
        claim(files, *targets)
        for path, target in zip(made, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
    finally:
        shutil.rmtree(drafts)


def _saved_files(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in (*read_manifest(folder), MANIFEST)]
    except (OSError, ValueError):
        inside = folder.iterdir() if folder.is_dir() else ()
        return [path for path in inside if SAVED.fullmatch(path.name)]


def _is_own_file(path: Path) -> bool:
    """Return whether it is a regular file: a FIFO would block, a link may leave the folder."""
    return path.is_file() and not path.is_symlink()


def _is_plain(root: Path, path: Path) -> bool:
    """Return whether neither the file nor a folder between it and the root is a link."""
    between = [path, *(parent for parent in path.parents if root in parent.parents)]
    return not any(part.is_symlink() for part in between)
