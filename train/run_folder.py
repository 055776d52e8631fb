"""Prepares a run directory: refuses foreign folders, records what the run depends on.

A run owns what its manifest, `run.json`, lists: the names that it writes in its folder. Nothing
else is ever removed, and a folder with content but without that manifest is never written to by a
new run.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from svilm_fast.data.dataset import prepare_tokenizer
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.train.checkpoint import committed_tags
from svilm_fast.train.config import RunConfig
from svilm_fast.train.deepspeed_config import build_deepspeed_config
from svilm_fast.train.environment import fingerprint
from svilm_fast.train.errors import ConfigError, UserError
from svilm_fast.train.files import RunFiles, write_atomically, write_json
from svilm_fast.train.folder_lock import LOCK_FILE
from svilm_fast.train.load_config import dump_config
from svilm_fast.train.ranks import Ranks

log = logging.getLogger(__name__)

FORMAT = "svilm_fast run"
# What a run writes, as patterns relative to its folder. A pattern names files, never folders.
WRITTEN = (
    "config.yaml",
    "ds_config.json",
    "env.json",
    "metrics.jsonl",
    "tracking.json",
    "tokenizer.json",
    "report.html",
    "non_finite_step_*_rank_*.json",
    "checkpoints/latest",
    "checkpoints/step_*/*",
    "portable/*",
    "tensorboard/events.out.tfevents.*",
    "evaluation/*.json",
    "evaluation/*.txt",
    "evaluation/*_pictures/*.png",
    "pictures/*.png",
    "profile/trace_from_step_*.json",
)
SHOWN = 3


def owned_patterns(files: RunFiles) -> list[str] | None:
    """Return the patterns that the folder's manifest lists; None where no run of ours wrote it."""
    try:
        content = json.loads(files.manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    listed = content.get("writes")
    # A manifest that somebody edited cannot widen what is removed.
    return [pattern for pattern in WRITTEN if isinstance(listed, list) and pattern in listed]


def check_ours(files: RunFiles) -> None:
    """Raise UserError for a folder with content that no run of this package wrote."""
    if not files.root.is_dir() or owned_patterns(files) is not None:
        return
    others = sorted(path.name for path in files.root.iterdir() if path.name != LOCK_FILE)
    if not others:
        return
    if files.config.is_file() and files.deepspeed_config.is_file():
        raise UserError(
            f"run.dir={files.root} holds a run of an older version, without {files.manifest.name}: "
            "continue it with --resume, remove the folder yourself, or choose another run.dir"
        )
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    raise UserError(
        f"run.dir={files.root} is not empty and not a run ({', '.join(others[:SHOWN])}{more}): "
        "give run.dir a new or empty folder"
    )


def check_free(files: RunFiles, *, overwrite: bool) -> None:
    """Raise UserError when a new run would write into a foreign folder or destroy checkpoints."""
    check_ours(files)
    tags = committed_tags(files.checkpoints)
    if not tags and not files.portable.is_dir():
        return
    if not overwrite:
        what = f"checkpoint {tags[0]}" if tags else "a portable checkpoint"
        raise UserError(
            f"{files.root} holds {what} of an earlier run; continue it with --resume, replace it "
            "with --overwrite, or choose another run.dir"
        )
    for path in (files.checkpoints, files.portable):
        if path.is_symlink():
            raise UserError(
                f"{path} is a link, and --overwrite removes nothing behind a link: empty "
                f"{path.resolve()} yourself, or choose another run.dir"
            )


def clear(files: RunFiles) -> None:
    """Remove what an earlier run wrote and its manifest lists; the rest stays and is named."""
    folders: set[Path] = set()
    for pattern in owned_patterns(files) or ():
        for path in files.root.glob(pattern):
            inside = [parent for parent in path.parents if files.root in parent.parents]
            # A link is somebody's own, and so is what lies behind one.
            if path.is_symlink() or any(parent.is_symlink() for parent in inside):
                continue
            folders.update(inside)
            if path.is_file():
                path.unlink()
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    kept = {LOCK_FILE, files.manifest.name}
    left = sorted(path.name for path in files.root.iterdir() if path.name not in kept)
    if left:
        log.warning("%s keeps what the earlier run did not write: %s", files.root, ", ".join(left))


def claim(files: RunFiles) -> None:
    """Write the manifest that makes the folder a run's."""
    created = time.strftime("%Y-%m-%d %H:%M:%S %z")
    write_json(files.manifest, {"format": FORMAT, "created": created, "writes": list(WRITTEN)})


def open_folder(
    files: RunFiles, config: RunConfig, tokenizer: Tokenizer, ranks: Ranks, *, fresh: bool
) -> None:
    """Make the folder this run's: clear it for a fresh one, then record what the run depends on.

    It comes after everything that can refuse to start, so that a wrong setting costs no earlier
    run its files. Every rank must call it.
    """

    def prepare() -> None:
        if owned_patterns(files) is None:
            claim(files)
        if fresh:
            clear(files)
        record(files, config, ranks)
        if not files.tokenizer.is_file():
            tokenizer.save(files.tokenizer)

    ranks.from_first(prepare)


def record(files: RunFiles, config: RunConfig, ranks: Ranks) -> None:
    """Write configuration, DeepSpeed's dictionary and the environment's fingerprint."""
    files.root.mkdir(parents=True, exist_ok=True)
    write_atomically(files.config, dump_config(config).encode())
    write_json(files.deepspeed_config, build_deepspeed_config(config, ranks.world_size))
    write_json(files.environment, fingerprint(ranks.device, ranks.world_size))


def shared_tokenizer(
    files: RunFiles, config: RunConfig, table: SampleTable, ranks: Ranks, *, fresh: bool
) -> Tokenizer:
    """Return the tokenizer that rank 0 makes once; a resumed run reads its own again."""

    def make() -> Tokenizer:
        if not fresh and files.tokenizer.is_file():
            return Tokenizer.load(files.tokenizer)
        return prepare_tokenizer(config.data, table)

    tokenizer = ranks.from_first(make)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} entries, more than text.vocab_size="
            f"{config.text.vocab_size}; set text.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer
