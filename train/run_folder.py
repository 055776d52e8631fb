"""Prepares a run directory: refuses to overwrite work, records what the run depends on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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
    for path in (files.metrics, files.report, files.tokenizer, *files.root.glob("non_finite_*")):
        path.unlink(missing_ok=True)


def record(files: RunFiles, config: RunConfig, ranks: Ranks) -> None:
    """Write configuration, DeepSpeed's dictionary and the environment's fingerprint."""
    files.root.mkdir(parents=True, exist_ok=True)
    files.config.write_text(dump_config(config))
    write_json(files.deepspeed_config, build_deepspeed_config(config, ranks.world_size))
    write_json(files.environment, fingerprint(ranks.device, ranks.world_size))


def shared_tokenizer(files: RunFiles, config: RunConfig, table: SampleTable, ranks: Ranks) -> Any:
    """Return the run's tokenizer; rank 0 makes it once and a resumed run finds it again."""
    if ranks.is_first and not files.tokenizer.is_file():
        prepare_tokenizer(config.data, table).save(files.tokenizer)
    ranks.barrier()
    tokenizer = Tokenizer.load(files.tokenizer)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} entries, more than text.vocab_size="
            f"{config.text.vocab_size}; set text.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
