"""Prepares a run directory: refuses to overwrite work, records what the run depends on."""

from __future__ import annotations

import shutil

from svilm_fast.data.dataset import prepare_tokenizer
from svilm_fast.data.samples import SampleTable
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.train.checkpoint import committed_tags
from svilm_fast.train.config import RunConfig
from svilm_fast.train.deepspeed_config import build_deepspeed_config
from svilm_fast.train.environment import fingerprint
from svilm_fast.train.errors import ConfigError, UserError
from svilm_fast.train.files import RunFiles, write_json
from svilm_fast.train.load_config import dump_config
from svilm_fast.train.ranks import Ranks


def check_free(files: RunFiles) -> None:
    """Raise UserError when a new run would destroy the checkpoints of an earlier one."""
    tags = committed_tags(files.checkpoints)
    if tags or files.portable.is_dir():
        what = f"checkpoint {tags[0]}" if tags else "a portable checkpoint"
        raise UserError(
            f"{files.root} holds {what} of an earlier run; continue it with --resume, replace it "
            "with --overwrite, or choose another run.dir"
        )


def clear(files: RunFiles) -> None:
    """Remove what an earlier run wrote; anything else in the folder stays."""
    folders = (
        files.checkpoints,
        files.portable,
        files.tensorboard,
        files.evaluation,
        files.profile,
    )
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    single = (files.metrics, files.report, files.tokenizer, files.tracking)
    for path in (*single, *files.root.glob("non_finite_*")):
        path.unlink(missing_ok=True)


def open_folder(
    files: RunFiles, config: RunConfig, tokenizer: Tokenizer, ranks: Ranks, *, fresh: bool
) -> None:
    """Make the folder this run's: clear it for a fresh one, then record what the run depends on.

    It comes after everything that can refuse to start, so that a wrong setting costs no earlier
    run its files. Every rank must call it.
    """

    def prepare() -> None:
        if fresh:
            clear(files)
        record(files, config, ranks)
        if not files.tokenizer.is_file():
            tokenizer.save(files.tokenizer)

    ranks.from_first(prepare)


def record(files: RunFiles, config: RunConfig, ranks: Ranks) -> None:
    """Write configuration, DeepSpeed's dictionary and the environment's fingerprint."""
    files.root.mkdir(parents=True, exist_ok=True)
    files.config.write_text(dump_config(config))
    write_json(files.deepspeed_config, build_deepspeed_config(config, ranks.world_size))
    write_json(files.environment, fingerprint(ranks.device, ranks.world_size))


def shared_tokenizer(
    files: RunFiles, config: RunConfig, table: SampleTable, ranks: Ranks, *, fresh: bool
) -> Tokenizer:
    """Return the tokenizer that rank 0 makes once; a run that goes on finds its own again."""

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
