"""Prepares a run directory: checks that it is free, and records what the run depends on.

A run owns the files that it lists (`ownership`), and never removes other files. A new run does not
write to a folder with content that is not marked as a run.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svilm_fast.core.errors import ConfigError, UserError
from svilm_fast.core.files import write_atomically, write_json
from svilm_fast.core.third_party import write_third_party
from svilm_fast.data.dataset import prepare_tokenizer
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.tokenizer import Tokenizer, load_or_train_tokenizer
from svilm_fast.train.config.deepspeed import build_deepspeed_config
from svilm_fast.train.config.load import dump_config
from svilm_fast.train.config.run_files import LOCK_FILE, RunFiles
from svilm_fast.train.config.schema import RunConfig
from svilm_fast.train.environment import fingerprint
from svilm_fast.train.folder.manifest import LATEST, committed_tags
from svilm_fast.train.folder.ownership import claim, foreign, is_run, mark, named, owned
from svilm_fast.train.ranks.process_group import Ranks

log = logging.getLogger(__name__)

# Files that a new run writes: a foreign file of such a name must be moved away first.
IN_THE_WAY = (
    "checkpoints/latest",
    "checkpoints/step_*",
    "portable",
    "evaluation/*_step_*",
    "profile/trace_from_step_*",
    "report.html",
)
# DeepSpeed writes these next to its checkpoints.
DEEPSPEED_SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")
FOLDERS = ("checkpoints", "portable", "tensorboard", "evaluation", "profile", "pictures")


def fixed_names(files: RunFiles) -> list[Path]:
    """Return the files that have the same names in every run."""
    return [
        files.config,
        files.deepspeed_config,
        files.environment,
        files.metrics,
        files.tracking,
        files.tokenizer,
        files.task,
        files.checkpoints / LATEST,
        *(files.checkpoints / name for name in DEEPSPEED_SCRIPTS),
        files.third_party,
    ]


def check_ours(files: RunFiles) -> None:
    """Raise UserError if the folder has content and is not marked as a run."""
    if not files.root.is_dir() or is_run(files):
        return
    others = sorted(path for path in files.root.iterdir() if path.name != LOCK_FILE)
    if not others:
        return
    if files.config.is_file() and files.deepspeed_config.is_file():
        raise UserError(
            f"run.dir={files.root} holds a run of an older version, without {files.manifest.name}: "
            "continue it with --resume, remove the folder yourself, or choose another run.dir"
        )
    raise UserError(
        f"run.dir={files.root} is not empty and is not a run ({named(files, others)}): "
        "give run.dir a new or empty folder"
    )


def check_free(files: RunFiles, *, overwrite: bool) -> None:
    """Raise UserError if a new run would replace foreign files or checkpoints."""
    check_ours(files)
    tags = committed_tags(files.checkpoints)
    if (tags or files.portable.is_dir()) and not overwrite:
        what = f"checkpoint {tags[0]}" if tags else "a portable checkpoint"
        raise UserError(
            f"{files.root} holds {what} of an earlier run; continue it with --resume, replace it "
            "with --overwrite, or choose another run.dir"
        )
    others = [path for path in foreign(files) if _is_in_the_way(files, path)]
    if others:
        raise UserError(
            f"a new run would replace files in {files.root} that its run did not write: "
            f"{named(files, others)}; move them away, or choose another run.dir"
        )


def _is_in_the_way(files: RunFiles, path: Path) -> bool:
    if path in fixed_names(files) or path in [files.root / name for name in FOLDERS]:
        return True  # foreign() lists one of FOLDERS only if it is a link or a file
    below = [path, *path.parents]
    return any(place in below for pattern in IN_THE_WAY for place in files.root.glob(pattern))


def clear(files: RunFiles) -> None:
    """Remove the files that the earlier run wrote, and warn of the others, which stay."""
    folders: set[Path] = set()
    for path in owned(files):
        path.unlink()
        folders.update(parent for parent in path.parents if files.root in parent.parents)
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    files.owned.unlink(missing_ok=True)
    left = foreign(files)
    if left:
        log.warning(
            "%s keeps the files that the earlier run did not write: %s",
            files.root,
            named(files, left),
        )


def open_folder(
    files: RunFiles,
    config: RunConfig,
    tokenizer: Tokenizer,
    ranks: Ranks,
    *,
    fresh: bool,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Clear the folder for a fresh run, then record what the run depends on.

    state: of the task.

    Call it on every rank, after everything that can fail at the start, so that a wrong setting does
    not cost an earlier run its files.
    """

    def prepare() -> None:
        if not is_run(files):
            mark(files, created=time.strftime("%Y-%m-%d %H:%M:%S %z"))
        if fresh:
            clear(files)
        names = fixed_names(files)
        if os.path.lexists(files.third_party) and files.third_party not in owned(files):
            # The folder of a run from before this file existed.
            names.remove(files.third_party)
            log.warning(
                "%s does not belong to this run: warnings of other packages are shown at the end, "
                "and their other log messages are lost",
                files.third_party,
            )
        claim(files, *names)
        record(files, config, ranks)
        if not files.tokenizer.is_file():
            tokenizer.save(files.tokenizer)
        if state:
            write_json(files.task, dict(state))
        if files.third_party in names:
            write_third_party(files.third_party)

    ranks.from_first(prepare)


def record(files: RunFiles, config: RunConfig, ranks: Ranks) -> None:
    """Write the configuration, DeepSpeed's dictionary and the fingerprint of the environment."""
    files.root.mkdir(parents=True, exist_ok=True)
    write_atomically(files.config, dump_config(config).encode())
    write_json(files.deepspeed_config, build_deepspeed_config(config, ranks.world_size))
    write_json(files.environment, fingerprint(ranks.device, ranks.world_size))


def shared_tokenizer(
    files: RunFiles,
    config: RunConfig,
    table: SampleTable | None,
    ranks: Ranks,
    *,
    fresh: bool,
    source: Path | None = None,
) -> Tokenizer:
    """Return the tokenizer, which rank 0 trains or loads; a resumed run loads its own.

    table: None trains the tokenizer on no text: the task reads none. source: a portable checkpoint
    whose weights are loaded. Its tokenizer replaces one that would be trained.
    Raises ConfigError if the settings name another one.
    """
    trained = config.data.tokenizer.kind == "bpe" and config.data.tokenizer.path is None

    def make() -> Tokenizer:
        if not fresh and files.tokenizer.is_file():
            return Tokenizer.load(files.tokenizer)
        kept = None if source is None else RunFiles(source).tokenizer
        if kept is None or not kept.is_file():
            if table is None:
                return load_or_train_tokenizer(config.data.tokenizer, ())
            return prepare_tokenizer(config.data, table)
        theirs = Tokenizer.load(kept)
        if not trained and not theirs.same_as(prepare_tokenizer(config.data, table)):
            raise ConfigError(
                f"data.tokenizer is not the tokenizer that {source} was trained with, so the same "
                f"tokens mean other words; set data.tokenizer.kind=bpe data.tokenizer.path={kept}"
            )
        return theirs

    tokenizer = ranks.from_first(make)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} entries, more than text.vocab_size="
            f"{config.text.vocab_size}; set text.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer
