"""Digests of a checkpoint's contents, to compare two checkpoints bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from svilm_fast.train.folder.trust import load_restricted

# Text about the run, not its state.
NOT_STATE = ("config.yaml", "manifest.json")


def _feed(target: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        target.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        target.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        target.update(f"dict {len(value)}".encode())
        for key in sorted(value, key=repr):
            target.update(repr(key).encode())
            _feed(target, value[key])
    elif isinstance(value, list | tuple):
        target.update(f"list {len(value)}".encode())
        for entry in value:
            _feed(target, entry)
    elif value is None or isinstance(value, str | bytes | bool | int | float):
        target.update(repr(value).encode())
    elif hasattr(value, "__dict__"):
        target.update(type(value).__name__.encode())
        _feed(target, vars(value))
    else:
        target.update(repr(value).encode())


def digest(value: Any) -> str:
    """Return the SHA-256 of a tree of tensors and plain values."""
    target = hashlib.sha256()
    _feed(target, value)
    return target.hexdigest()


def _content(path: Path) -> Any:
    if path.suffix == ".pt":
        return load_restricted(path, map_location="cpu")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return path.read_bytes()


def state_of(checkpoint: Path) -> dict[str, str]:
    """Return the digest of every file of a checkpoint: parameters, moments, schedule, generators,
    position in the data."""
    return {
        path.name: digest(_content(path))
        for path in sorted(checkpoint.iterdir())
        if path.name not in NOT_STATE
    }


def records_of(run: Path, name: str = "loss") -> dict[int, float]:
    """Return a value of metrics.jsonl by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}
