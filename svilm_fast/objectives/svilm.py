"""S-ViLM as a trainable module: dual encoder and objectives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from svilm_fast.core.trace_ranges import phase
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.features import VideoFeatures
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.models.noise import part_seeds
from svilm_fast.models.precision import unit_norm
from svilm_fast.models.teacher import TEACHER_OUTPUTS, Teacher
from svilm_fast.models.text_encoder import TextSequences
from svilm_fast.objectives.collapse import halves
from svilm_fast.objectives.config import ModelBlocks
from svilm_fast.objectives.features import Features, View, ViewFeatures
from svilm_fast.objectives.total import Objectives, StepOutput

FRAMES_OF = {"clean": "frames", "blended": "blended", "crops": "crops"}


class SViLM(nn.Module):
    """Structured video-language pre-training (arXiv 2303.16341).

    `forward` is `objective(embed(inputs))`; a gradient cache calls the two halves separately. Only
    what the active objectives read is computed.
    """

    def __init__(self, config: ModelBlocks) -> None:
        super().__init__()
        self.reads = config.objectives.reads()
        self.global_reads = config.objectives.reads("global")
        groups = self.reads.uses_groups(config.video)
        self.noisy = _is_noisy(config, groups)
        self.encoder = DualEncoder(config.model, config.video, config.text, groups=groups)
        self.objectives = Objectives(config)
        self.teacher = Teacher(self.encoder.video) if self.reads.teacher else None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or cast the teacher with the model, of which it is no part."""
        if self.teacher is not None:
            self.teacher.encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, inputs: ModelInputs) -> StepOutput:
        """One training step's loss and metrics; collective on all ranks."""
        return self.objective(self.embed(inputs))

    def objective(self, features: Features) -> StepOutput:
        """Loss and metrics from the features of the whole local batch."""
        with phase("objective"):
            return StepOutput(*self.objectives(features))

    def embed(self, inputs: ModelInputs) -> Features:
        """Return what the global objectives read, and the terms of the local ones.

        No sample sees another.
        """
        if self.training and self.noisy and inputs.seeds is None:
            raise ValueError(
                "this model is noisy in training and the inputs hold no seeds: "
                "give ModelInputs.seeds, or call eval()"
            )
        with phase("embed"):
            videos = {view: self._encode_videos(inputs, view) for view in sorted(self.reads.views)}
            texts, nouns = self._embed_texts(inputs)
            views: dict[str, Any] = {
                view: ViewFeatures.of(found, self.reads.features_of(view))
                for view, found in videos.items()
            }
            features = Features(
                **views,
                teacher=self._teach(inputs),
                spread=_halves(videos["clean"]) if self.reads.spread else None,
                texts=texts,
                nouns=nouns,
                noun_mask=inputs.noun_mask if self.reads.nouns else None,
                paste_mask=inputs.paste_mask,
                pair_ids=inputs.pair_ids,
                source_ids=inputs.source_ids,
                teacher_videos=inputs.teacher_videos,
                teacher_texts=inputs.teacher_texts,
                empty_groups=_empty_groups(videos),
            )
            local = self.objectives.local_terms(features)
        return features.only(self.global_reads)._replace(local=local)

    def _encode_videos(self, inputs: ModelInputs, view: View) -> VideoFeatures:
        if inputs.video_embeddings is not None:
            return _stored(inputs.video_embeddings)
        field = FRAMES_OF[view]
        frames = getattr(inputs, field)
        if frames is None:
            raise ValueError(
                f"an objective reads the {view} video, but ModelInputs.{field} is missing"
            )
        seeds, shown = inputs.seeds, None
        if view == "crops":
            shown = self.reads.shown(view, self.encoder.video.config)
            seeds = None if seeds is None else part_seeds(seeds, frames.shape[1])
            frames = frames.flatten(0, 1)
        return self.encoder.encode_video(frames, seeds, self.reads.outputs(view), shown)

    def _teach(self, inputs: ModelInputs) -> ViewFeatures | None:
        """The teacher's tokens of the clean clips, those that dropping keeps, none masked."""
        if self.teacher is None:
            return None
        assert inputs.frames is not None
        with torch.no_grad():
            found = self.teacher.encoder(
                inputs.frames, inputs.seeds, TEACHER_OUTPUTS, dropping_only=True
            )
        return ViewFeatures.of(found, {"tokens"})

    def _embed_texts(self, inputs: ModelInputs) -> tuple[Tensor | None, Tensor | None]:
        """Embed captions and prompted nouns in one call of the text encoder."""
        sets = []
        if self.reads.texts:
            sets.append(TextSequences(inputs.text_tokens, inputs.text_mask, inputs.seeds))
        if self.reads.nouns:
            sets.append(_noun_sequences(inputs))
        embedded = self.encoder.encode_texts(sets) if sets else []
        texts = embedded[0] if self.reads.texts else None
        if not self.reads.nouns:
            return texts, None
        assert inputs.noun_mask is not None
        return texts, embedded[-1].unflatten(0, tuple(inputs.noun_mask.shape))


def build_model(config: ModelBlocks) -> SViLM:
    """Build the model that the blocks `model`, `video`, `text` and `objectives` describe.

    Draws initial weights from torch's generator; under `torch.device("meta")` nothing is allocated.
    """
    return SViLM(config)


def _is_noisy(config: ModelBlocks, groups: bool) -> bool:
    video, text = config.video, config.text
    crops = config.objectives.reads().crops
    rates = [video.drop.rate, video.drop.rate_max, video.drop_path, video.dropout, video.mask.rate]
    rates += [] if crops is None else [crops.drop_rate]
    return bool(
        any(rates) or text.drop_path or text.dropout or (groups and video.grouping.mode == "gumbel")
    )


def _halves(video: VideoFeatures) -> Tensor:
    assert video.tokens is not None
    return halves(video.tokens, video.token_mask)


def _noun_sequences(inputs: ModelInputs) -> TextSequences:
    tokens, mask = inputs.noun_tokens, inputs.noun_token_mask
    if tokens is None or mask is None or inputs.noun_mask is None:
        raise ValueError(
            "an objective reads nouns, which needs noun_tokens, noun_token_mask and noun_mask"
        )
    seeds = None if inputs.seeds is None else part_seeds(inputs.seeds, tokens.shape[1])
    return TextSequences(tokens.flatten(0, 1), mask.flatten(0, 1), seeds, nouns=True)


def _stored(embeddings: Tensor) -> VideoFeatures:
    """Features of clips of which only stored embeddings [b, D] are known."""
    none = embeddings.new_empty(len(embeddings), 0)
    return VideoFeatures(
        video=unit_norm(embeddings),
        segments=None,
        segment_mask=None,
        groups=None,
        assignments=(),
        token_ids=none.long(),
        token_mask=None,
        grid=(0, 0, 0),
        pooled=none,
    )


def _empty_groups(features: dict[View, VideoFeatures]) -> Tensor | None:
    """Return the share of empty groups in the last grouping block that ran, per clip."""
    for found in features.values():
        if found.assignments:
            return (found.assignments[-1].counts == 0).float().mean(dim=1)
    return None
