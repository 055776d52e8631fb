"""Output files of a unit: written under temporary names, then published without replacing any."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from svilm_fast.core.earlier_result import check_replaceable
from svilm_fast.core.files import sync
from svilm_fast.data.errors import DataError, ShardError

# What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class OfflineError(DataError):
    """Off-line work cannot start or continue in this folder."""

    reason = "off-line work"


@dataclass(frozen=True)
class OutputFile:
    """A published file: name in the folder, size in bytes, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str

    def is_intact(self, folder: Path) -> bool:
        """Whether the file is there with this size and content."""
        path = folder / self.name
        try:
            return path.stat().st_size == self.size and _sha256(path) == self.sha256
        except FileNotFoundError:
            return False


class Outputs:
    """The files that one unit of a kind of work writes into `folder`."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self._token = secrets.token_hex(8)
        self._partials: dict[str, Path] = {}

    def path(self, name: str) -> Path:
        """The temporary path at which to write the file `name`.

        Files are published in the order of their first call: one that readers look for first, such
        as a shard, comes after those that it needs, such as its index.
        """
        partial = f".{name}.{self._token}.svilm-{self.kind}-partial"
        return self._partials.setdefault(name, self.folder / partial)

    def publish(self) -> list[OutputFile]:
        """Flush the files to disk and give them their names.

        Raises OfflineError where a name is taken by a file of other content; it stays untouched.
        """
        published = []
        for name, partial in self._partials.items():
            sync(partial)
            file = OutputFile(name, partial.stat().st_size, _sha256(partial))
            self._publish(partial, file)
            published.append(file)
        if published:
            sync(self.folder)
        self._partials.clear()
        return published

    def discard(self) -> None:
        """Remove what was written and not published."""
        for partial in self._partials.values():
            partial.unlink(missing_ok=True)
        self._partials.clear()

    def _publish(self, partial: Path, file: OutputFile) -> None:
        path = self.folder / file.name
        try:
            os.link(partial, path)  # unlike a rename, a link replaces nothing
        except FileExistsError:
            self._require_same(path, file)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not os.path.lexists(path):
                os.rename(partial, path)
                return
            self._require_same(path, file)
        partial.unlink()

    def _require_same(self, path: Path, file: OutputFile) -> None:
        if not file.is_intact(self.folder):
            raise OfflineError(
                f"{path} exists, is not an output of this work and would be overwritten: move it "
                "away and start again, or choose another folder"
            )


def check_shard_folder(folder: Path, manifest: str, report: str, sign: str) -> None:
    """Raise ShardError where new shards in `folder` would join others, or replace a file.

    manifest, report: files of the work that may continue there. sign: a text in all its reports.
    """
    if any(folder.glob("*.tar")) and not (folder / manifest).exists():
        raise ShardError(f"{str(folder)!r} already holds shards: choose another folder or empty it")
    try:
        check_replaceable(folder / report, sign)
    except ValueError as error:
        raise ShardError(str(error)) from None


def remove_partials(folder: Path, kind: str) -> None:
    """Remove temporary files that interrupted work of this kind has left in `folder`.

    Work of another kind may be writing there at the same time: each kind has a lock of its own.
    """
    partial = re.compile(rf"\..+\.[0-9a-f]{{16}}\.svilm-{re.escape(kind)}-partial")
    with os.scandir(folder) as entries:
        left = [e.path for e in entries if partial.fullmatch(e.name) and e.is_file()]
    for path in left:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
