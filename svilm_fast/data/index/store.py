"""Where indexes lie: beside the data when a user made them, else in memory or in the user's cache.

Nothing is written into a folder of data unless `svilm data index` is run.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from svilm_fast.data.config import DataConfig, LimitsConfig, NounsConfig
from svilm_fast.data.errors import DataError
from svilm_fast.data.index.build import BuildEngine, Ready, index_in_memory, write_index
from svilm_fast.data.index.file import Index
from svilm_fast.data.index.part import IndexParameters
from svilm_fast.data.index.sources import Source, difference, digest_of, folder_of

log = logging.getLogger(__name__)

# Up to this many samples are indexed in memory, by every process that opens them.
IN_MEMORY = 20_000


def open_index(sources: Sequence[Source], config: DataConfig, *, nouns: bool) -> Index:
    """The index of sources: their own file, one in memory for small sets, or one in the cache.

    nouns: with nouns for all captions, as `config.nouns` says. Raises DataError where the sources
    cannot be read, and where they are not those that their index describes.
    """
    wanted = IndexParameters.of(config, nouns=nouns)
    # An index with nouns serves those who need none too.
    richer = [] if nouns else [IndexParameters.of(config, nouns=True)]
    for parameters in [wanted, *richer]:
        beside = path_beside(sources, parameters)
        if beside is not None and beside.is_file():
            return _own(beside, sources, parameters, config.videos)
        found = _cached(_cache_path(sources, parameters), sources)
        if found is not None:
            return found
    index = index_in_memory(sources, IndexParameters.of(config, nouns=False), IN_MEMORY)
    if isinstance(index, dict):
        return _through_cache(sources, wanted, config.videos, index)
    return index.with_nouns(config.nouns) if nouns else index


def make_index(
    sources: Sequence[Source], parameters: IndexParameters, engine: BuildEngine | None = None
) -> Path:
    """Write the index of sources beside the first of them; replaces an older one."""
    path = path_beside(sources, parameters)
    if path is None:
        raise DataError(
            f"{sources[0].path!r} is not a local folder: it is indexed in the cache of the user "
            "when a run opens it"
        )
    with _write_errors(path, f"make {str(path.parent)!r} writable and start again to continue"):
        write_index(path, sources, parameters, engine)
    return path


def path_beside(sources: Sequence[Source], parameters: IndexParameters) -> Path | None:
    """Where the index that a user makes lies; None where the first source is remote."""
    folder = folder_of(sources[0])
    if folder is None:
        return None
    return folder / f".svilm-index-{digest_of(sources, parameters, str(folder))}.bin"


def command_of(sources: Sequence[Source], parameters: IndexParameters, videos: str | None) -> str:
    """The command that makes this index once for everybody."""
    words = ["svilm", "data", "index", *(source.path for source in sources)]
    words += [] if videos is None else ["--videos", videos]
    nouns, usual, limits = parameters.nouns, NounsConfig(), LimitsConfig()
    if nouns is None:
        words.append("--no-nouns")
    else:
        words += [] if nouns.extractor == usual.extractor else ["--extractor", nouns.extractor]
        if nouns.extractor == "spacy" and nouns.spacy_model != usual.spacy_model:
            words += ["--spacy-model", nouns.spacy_model]
        words += [] if nouns.phrases else ["--no-phrases"]
    for name in ("json_bytes", "shard_members"):
        value = getattr(parameters, name)
        words += [] if value == getattr(limits, name) else [f"--{name.replace('_', '-')}", value]
    return shlex.join(map(str, words))


def _own(
    path: Path, sources: Sequence[Source], parameters: IndexParameters, videos: str | None
) -> Index:
    index = Index.open(str(path))
    written = path.stat().st_mtime
    changed = difference(sources, index.header, index.columns, written, moved=True)
    if changed is not None:
        raise DataError(
            f"the index {path} is of other data ({changed}): make it again with "
            f"`{command_of(sources, parameters, videos)}`, or delete it"
        )
    return index


def _cache_path(sources: Sequence[Source], parameters: IndexParameters) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^\w.-]+", "_", os.path.basename(sources[0].path.rstrip("/")))[:40]
    digest = digest_of(sources, parameters, None)
    return folder / "svilm-fast" / "indexes" / f"{name}-{digest}.bin"


def _cached(path: Path, sources: Sequence[Source]) -> Index | None:
    """An index in the cache, None where there is none or it is of older data."""
    try:
        written = path.stat().st_mtime
        index = Index.open(str(path))
    except (OSError, ValueError):  # a DataError among them
        return None
    changed = difference(sources, index.header, index.columns, written, moved=False)
    return None if changed else index


def _through_cache(
    sources: Sequence[Source], parameters: IndexParameters, videos: str | None, ready: Ready
) -> Index:
    """Make the index in the cache; of several processes one makes it and the others wait."""
    path, hint = _cache_path(sources, parameters), ""
    if path_beside(sources, parameters) is not None:
        command = command_of(sources, parameters, videos)
        hint = f"`{command}` does it beforehand, for all users of the data"
    with _write_errors(path, f"set XDG_CACHE_HOME to another folder{hint and f', or: {hint}'}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _cached(path, sources)
            if found is None:
                given = ", ".join(source.path for source in sources)
                log.warning("%s: indexed once, to %s%s", given, path, hint and f"; {hint}")
                write_index(path, sources, parameters, ready=ready)
                found = Index.open(str(path))
    return found


@contextlib.contextmanager
def _write_errors(path: Path, advice: str) -> Iterator[None]:
    """A folder that cannot be written, or a full disk, becomes a DataError with advice."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the index cannot be written to {path}: {error.strerror or error}; {advice}"
        ) from error
