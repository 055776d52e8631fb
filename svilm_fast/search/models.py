"""Opens a model for search: an exported folder or a run."""

from __future__ import annotations

from pathlib import Path

import torch

from svilm_fast.core.errors import UserError
from svilm_fast.inference.folder import is_exported, load_pretrained
from svilm_fast.inference.model import PretrainedModel
from svilm_fast.train.config.options import Weights
from svilm_fast.train.run.embedding import pretrained
from svilm_fast.train.run.loaded_run import load_run


def open_model(
    path: str | Path, *, device: torch.device | str = "cpu", weights: Weights | None = None
) -> PretrainedModel:
    """Open a folder that `svilm export` wrote, or a run.

    weights: of a run. Raises UserError if the folder is neither, or if weights are chosen of an
    exported folder, which holds only one kind.
    """
    if is_exported(path):
        model = load_pretrained(path, device=device)
        if weights is not None and weights.value != model.settings.weights:
            raise UserError(
                f"{path} holds {model.settings.weights} weights, not {weights.value}; export the "
                f"run with --weights {weights.value}, or leave --weights out"
            )
        return model
    if not (Path(path) / "config.yaml").is_file():
        raise UserError(
            f"{path} is neither a folder that `svilm export` wrote nor a run; give one of them"
        )
    return pretrained(load_run(path, device=device, weights=weights))
