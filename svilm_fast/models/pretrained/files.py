"""Reads safetensors and the JSON beside them, of a local file or folder; runs no code of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from svilm_fast.core.errors import CheckpointError
from svilm_fast.core.messages import single_line

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
RUN = "config.yaml"  # of our checkpoints
DESCRIPTIONS = ("config.json", "open_clip_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class WeightFiles:
    """Tensors by name, and JSON and YAML files beside them by file name ({} for those missing)."""

    source: Path
    tensors: dict[str, Tensor]
    described: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def read_weight_files(path: str | Path) -> WeightFiles:
    """Read a safetensors file, or the one (or the indexed ones) of a folder.

    The files beside a single file are not read, because they may belong to another one. Raises
    CheckpointError.
    """
    source = Path(path)
    if not source.exists():
        raise CheckpointError(f"there are no weights at {str(source)!r}: give a local path")
    if source.is_file():
        return WeightFiles(source, _tensors(source))
    described = {name: _json(source / name) for name in DESCRIPTIONS}
    described[RUN] = _yaml(source / RUN)
    tensors: dict[str, Tensor] = {}
    for file in _files_of(source):
        tensors |= _tensors(file)
    return WeightFiles(source, tensors, described)


def _files_of(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        names = _json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{folder / INDEX} has no weight_map")
        shards = sorted({str(name) for name in names.values()})
        for shard in shards:
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise CheckpointError(f"{folder / INDEX} names {shard!r}, which is not there")
        return [folder / shard for shard in shards]
    found = sorted(folder.glob("*.safetensors"))
    preferred = [file for file in found if file.name == "model.safetensors"]
    if preferred or len(found) == 1:
        return (preferred or found)[:1]
    if found:
        names = ", ".join(file.name for file in found[:5])
        raise CheckpointError(f"{folder} holds several weights ({names}): name one of the files")
    if (folder / "portable").is_dir():
        raise CheckpointError(
            f"{folder} is the folder of a run: name its checkpoint {folder / 'portable'}"
        )
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    hint = f"; {pickles[0]} is a pickle, which can run code: {_CONVERT}" if pickles else ""
    raise CheckpointError(f"{folder} holds no safetensors file{hint}")


_CONVERT = "save it with safetensors.torch.save_file where it is trusted"


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix in PICKLES:
        raise CheckpointError(f"{file} is a pickle, which can run code: {_CONVERT}")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} is no safetensors file: {single_line(error)}") from None


def _yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file} is no YAML: {single_line(error)}") from None
    return value if isinstance(value, dict) else {}


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no JSON: {single_line(error)}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return value
