"""A trained model as an encoder for mteb's video tasks (MVEB); mteb needs the extra `mteb`.

Only `mteb_encoder` imports mteb. `VideoTextEncoder` has the methods that mteb's `EncoderProtocol`
asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from svilm_fast.core.errors import UserError
from svilm_fast.data.sampling import choose_frames
from svilm_fast.inference.clips import centre_crop
from svilm_fast.inference.model import PretrainedModel

LANGUAGES = ["eng-Latn"]


class VideoTextEncoder:
    """Embeds the batches of an mteb task: texts, videos, or both.

    A batch is a mapping with `text` (a list of texts), `video` (a list of videos) or both. A video
    is a tensor or array of frames uint8 [n, 3, H, W], or a decoder such as torchcodec's, of which
    only the wanted frames are decoded. The model reads the middle frames of equal parts of the
    frames, and the evaluation's centre crop of them. A sample with text and video is embedded as
    the sum of both, scaled to unit norm.

    Args:
        model: embeds.
        meta: mteb's description of the model (`mteb.ModelMeta`).
    """

    def __init__(self, model: PretrainedModel, meta: Any = None) -> None:
        self.model = model
        self.mteb_model_meta = meta

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **options: Any,
    ) -> Tensor:
        """Embed every batch; options such as `batch_size` belong to the loader and are ignored.

        Returns:
            float32 [n, D] on the CPU, rows of unit norm.

        Raises:
            ValueError: a batch with neither text nor video, or a video of another form.
        """
        del task_metadata, hf_split, hf_subset, prompt_type, options
        parts = [self._embed(batch) for batch in inputs]
        return torch.cat(parts) if parts else torch.empty(0, self.model.embed_dim)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosine similarity of all pairs: [n, D] and [m, D] to float32 [n, m]."""
        first, second = (_unit_rows(side) for side in (embeddings1, embeddings2))
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosine similarity of the pairs in order: [n, D] twice to float32 [n]."""
        first, second = (_unit_rows(side) for side in (embeddings1, embeddings2))
        return (first * second).sum(dim=-1)

    def _embed(self, batch: Mapping[str, Any]) -> Tensor:
        found = []
        if "video" in batch:
            frames = (self._frames(video) for video in batch["video"])
            clips = [centre_crop(each, self.model.settings) for each in frames]
            found.append(self.model.embed_clips(torch.stack(clips)))
        if "text" in batch:
            found.append(self.model.embed_text(list(batch["text"])))
        if not found:
            raise ValueError(f"a batch needs text or video, found {sorted(batch)}")
        return found[0] if len(found) == 1 else normalize(found[0] + found[1], dim=-1)

    def _frames(self, video: Any) -> Tensor:
        """Return the frames that the model reads, uint8 [F, H, W, 3]."""
        settings = self.model.settings
        total = len(video)
        if total == 0:
            raise ValueError("a video of the task has no frames")
        wanted = choose_frames(
            total, settings.video.frames, None, short_clip=settings.reading.short_clip
        )
        if hasattr(video, "get_frames_at"):
            frames = video.get_frames_at(indices=wanted.tolist()).data
        elif isinstance(video, Tensor | np.ndarray):
            frames = torch.as_tensor(video)[torch.from_numpy(wanted)]
        else:
            raise ValueError(
                f"a video must be frames [n, 3, H, W] or a decoder, got {type(video).__name__}"
            )
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(
                "the frames of a video must be uint8 [n, 3, H, W], got "
                f"{frames.dtype} {list(frames.shape)}"
            )
        return frames.permute(0, 2, 3, 1).contiguous()


def mteb_encoder(
    model: PretrainedModel,
    name: str,
    *,
    revision: str | None = None,
    licence: str | None = None,
    training_datasets: set[str] | None = None,
) -> VideoTextEncoder:
    """Return an encoder with the description that `mteb.evaluate` asks for.

    Args:
        model: embeds.
        name: `organisation/model`, under which mteb stores the results.
        revision: of the model; None: the first 12 digits of its fingerprint.
        licence: of the weights.
        training_datasets: names of mteb's tasks whose data the model has seen; None: not known.

    Raises:
        UserError: mteb is not installed.
    """
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction
    except ImportError as error:
        raise UserError(
            "this needs mteb with its video parts, which is not installed: "
            "pip install 'svilm-fast[mteb]' 'mteb[video]'"
        ) from error
    encoder = VideoTextEncoder(model)
    size = sum(parameter.numel() for parameter in model.parameters())
    encoder.mteb_model_meta = ModelMeta(
        loader=None,
        name=name,
        revision=revision or model.fingerprint()[:12],
        release_date=None,
        languages=LANGUAGES,
        n_parameters=size,
        memory_usage_mb=4 * size / 2**20,
        max_tokens=model.settings.reading.length,
        embed_dim=model.embed_dim,
        license=licence,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=training_datasets,
        modalities=["video", "text"],
    )
    return encoder


def _unit_rows(rows: Any) -> Tensor:
    table = torch.as_tensor(rows).float()
    return normalize(table if table.ndim == 2 else table[None], dim=-1)
