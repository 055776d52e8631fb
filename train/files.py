"""Reads and writes of the files in a run directory, and their places."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from svilm_fast.core.files import sync as sync
from svilm_fast.core.files import write_atomically as write_atomically
from svilm_fast.core.files import write_json as write_json
from svilm_fast.train.disk import write_errors

CHUNK_BYTES = 1 << 20
LONGEST_JSON = 64 << 20


def read_limited(path: Path) -> bytes:
    """Return a small file's content; raise ValueError that names a file which is none.

    A FIFO or a device, whose reading may never end, is none.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing or no regular file")
    if path.stat().st_size > LONGEST_JSON:
        raise ValueError(f"{path} is damaged (larger than {LONGEST_JSON >> 20} MiB)")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """Return a small JSON file's content; raise ValueError that names the file where it is none."""
    try:
        return json.loads(read_limited(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{path} is damaged (not JSON)") from None


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
    """Write a safetensors file with the permissions of any other new file.

    safetensors makes its file readable by its owner alone, whatever the umask. Raises OSError
    where the file cannot be written.
    """
    with write_errors():
        save_file(tensors, path, **options)
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@dataclass(frozen=True)
class RunFiles:
    """The layout of a run directory."""

    root: Path

    def names(self) -> list[str]:
        """Return the names in the folder that a run writes."""
        files = [self.manifest, self.owned, self.config, self.deepspeed_config, self.environment]
        files += [self.metrics, self.tracking, self.tokenizer, self.report]
        folders = [self.tensorboard, self.checkpoints, self.portable, self.evaluation, self.profile]
        return ["pictures", *(path.name for path in (*files, *folders))]

    @property
    def manifest(self) -> Path:
        """What says that the folder is a run's."""
        return self.root / "run.json"

    @property
    def owned(self) -> Path:
        """The list of the files that the run's commands wrote."""
        return self.root / "run.files"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def copied(self) -> list[Path]:
        """What a checkpoint needs beside weights to be read: configuration and tokenizer."""
        return [path for path in (self.config, self.tokenizer) if path.is_file()]

    @property
    def deepspeed_config(self) -> Path:
        """The generated dictionary of DeepSpeed."""
        return self.root / "ds_config.json"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.root / "env.json"

    @property
    def metrics(self) -> Path:
        """One JSON record per line."""
        return self.root / "metrics.jsonl"

    @property
    def tracking(self) -> Path:
        """What wandb and trackio know this run by."""
        return self.root / "tracking.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """DeepSpeed checkpoints, each with a manifest."""
        return self.root / "checkpoints"

    @property
    def portable(self) -> Path:
        """The portable checkpoint."""
        return self.root / "portable"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder or file."""
        return self.root / "tokenizer.json"

    @property
    def evaluation(self) -> Path:
        """Tables of the evaluations."""
        return self.root / "evaluation"

    @property
    def profile(self) -> Path:
        """Chrome traces."""
        return self.root / "profile"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "report.html"
