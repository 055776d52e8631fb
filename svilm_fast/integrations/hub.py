"""A trained model on the Hugging Face hub; needs the extra `hub` (huggingface_hub)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from svilm_fast.core.errors import UserError

try:
    from huggingface_hub import PyTorchModelHubMixin, snapshot_download
except ImportError as error:
    raise UserError(
        "svilm_fast.integrations.hub needs huggingface_hub, which is not installed: "
        "pip install 'svilm-fast[hub]'"
    ) from error

from svilm_fast.inference.folder import (
    CARD,
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    load_pretrained,
    write_files,
)
from svilm_fast.inference.model import PretrainedModel


class HubModel(
    PretrainedModel,
    PyTorchModelHubMixin,
    library_name="svilm-fast",
    tags=["video-text-retrieval", "s-vilm"],
):
    """A `PretrainedModel` with `from_pretrained`, `save_pretrained` and `push_to_hub`.

    The files are those of `svilm export`, so `svilm_fast.load_pretrained` reads them too.
    `from_pretrained` takes a local folder, without any access to the network, or a repository; its
    option `device` is that of `load_pretrained`. No code of a repository is executed.
    """

    @classmethod
    def of(cls, model: PretrainedModel) -> HubModel:
        """Return the same model, with the same parameters, for the hub."""
        return cls(model.encoder, model.settings, model.tokenizer, model.card)

    def _save_pretrained(self, save_directory: Path) -> None:
        card = self.card
        if (Path(save_directory) / CARD).is_file():
            self.card = ""  # a card that is there may have been edited: it stays
        try:
            write_files(self, Path(save_directory))
        finally:
            self.card = card

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: torch.device | str = "cpu",
        **unknown: Any,
    ) -> HubModel:
        if unknown:
            raise TypeError(f"HubModel.from_pretrained has no option {min(unknown)!r}")
        folder = model_id
        if not Path(model_id).is_dir():
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[WEIGHTS, CONFIG, TOKENIZER, CARD],
            )
        return cls.of(load_pretrained(folder, device=device))
