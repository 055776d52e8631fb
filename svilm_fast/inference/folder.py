"""The folder of an exported model: model.safetensors, config.json, tokenizer.json, README.md."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from svilm_fast.core.errors import UserError
from svilm_fast.core.files import json_text
from svilm_fast.core.messages import single_line
from svilm_fast.data.errors import DataError
from svilm_fast.data.shards import parse_json
from svilm_fast.data.tokenizer import Tokenizer
from svilm_fast.inference.config import FORMAT, PretrainedConfig
from svilm_fast.inference.model import PretrainedModel
from svilm_fast.models.dual_encoder import DualEncoder

WEIGHTS, CONFIG, TOKENIZER, CARD = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "README.md",
)


def is_exported(folder: str | Path) -> bool:
    """Whether a folder holds an exported model's config.json."""
    try:
        return _read_json(Path(folder) / CONFIG).get("format") == FORMAT
    except UserError:
        return False


def write_model(model: PretrainedModel, folder: str | Path) -> Path:
    """Write a model to `folder`, which must be new or empty.

    The folder appears complete or not at all. Raises UserError if the folder holds anything.
    """
    # A link to an empty folder stays.
    out = Path(folder).resolve()
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; export to a new folder")
    if out == Path.cwd():
        # It would be replaced under the caller, whose shell would stay in the removed folder.
        raise UserError(f"{folder} is the current folder; export to a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{secrets.token_hex(8)}.svilm-partial")
    draft.mkdir()
    try:
        write_files(model, draft)
        os.replace(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Path(folder)


def write_files(model: PretrainedModel, folder: Path) -> None:
    """Write the files of a model into an existing folder; files of these names are replaced."""
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in model.encoder.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    model.tokenizer.save(folder / TOKENIZER)
    (folder / CONFIG).write_text(json_text(model.settings.to_json()), encoding="utf-8")
    # safetensors lets only the owner read its files.
    (folder / WEIGHTS).chmod(stat.S_IMODE((folder / CONFIG).stat().st_mode))
    if model.card:
        (folder / CARD).write_text(model.card, encoding="utf-8")


def load_pretrained(path: str | Path, *, device: torch.device | str = "cpu") -> PretrainedModel:
    """Load a model that `svilm export` wrote, in evaluation mode.

    Args:
        path: the exported folder.
        device: of the parameters.

    Raises:
        UserError: the folder is not an exported model, or its files do not fit each other.
    """
    folder = Path(path)
    settings = _settings(folder)
    try:
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        tensors = load_file(folder / WEIGHTS)
    except (DataError, SafetensorError, OSError) as error:
        raise UserError(
            f"{folder} is not complete: {single_line(error)}; export the model again"
        ) from error
    with torch.device("meta"):
        encoder = DualEncoder(settings.model, settings.video, settings.text, groups=settings.groups)
    _check(folder, tokenizer, settings, tensors, encoder.state_dict())
    # Somebody may have stored half precision; embeddings are computed in fp32.
    whole = {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    encoder.load_state_dict(whole, assign=True)
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return PretrainedModel(encoder.to(device), settings, tokenizer, text)


def _settings(folder: Path) -> PretrainedConfig:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that `svilm export` wrote")
    if not (folder / CONFIG).is_file():
        hint = (
            "export the run first: svilm export --run RUN --out FOLDER"
            if (folder / "config.yaml").is_file()
            else "give a folder that `svilm export` wrote"
        )
        raise UserError(f"{folder} has no {CONFIG}; {hint}")
    values = _read_json(folder / CONFIG)
    found = values.get("format")
    if found != FORMAT:
        raise UserError(
            f"{folder / CONFIG} has the format {found!r}, this version reads {FORMAT!r}; "
            "give a folder that `svilm export` of this version wrote"
        )
    try:
        return PretrainedConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{folder / CONFIG}: {where}: {first['msg']}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(path.read_bytes(), str(path))
    except (DataError, OSError) as error:
        raise UserError(f"{path} cannot be read: {single_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object")
    return values


def _check(
    folder: Path,
    tokenizer: Tokenizer,
    settings: PretrainedConfig,
    tensors: dict[str, torch.Tensor],
    wanted: dict[str, Any],
) -> None:
    saved = {name: list(value.shape) for name, value in tensors.items()}
    shapes = {name: list(value.shape) for name, value in wanted.items()}
    for name in sorted(saved.keys() | shapes.keys()):
        if saved.get(name) != shapes.get(name):
            raise UserError(
                f"{folder / WEIGHTS} does not fit {CONFIG}: {name} has the shape "
                f"{saved.get(name, 'of no tensor')}, expected {shapes.get(name, 'no such tensor')}"
            )
    if tokenizer.vocab_size > settings.text.vocab_size:
        raise UserError(
            f"{folder / TOKENIZER} has {tokenizer.vocab_size} tokens, the model "
            f"{settings.text.vocab_size}"
        )
