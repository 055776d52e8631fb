"""S-ViLM as a trainable module: dual encoder and objectives."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from svilm_fast.core.trace_ranges import phase
from svilm_fast.models.config import ModelConfig, TextConfig, VideoConfig
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.features import VideoFeatures
from svilm_fast.models.inputs import ModelInputs
from svilm_fast.models.noise import noun_seeds
from svilm_fast.models.text_encoder import TextSequences
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.objectives.config import ObjectivesConfig, VideoSource
from svilm_fast.objectives.total import Embeddings, Objectives, StepOutput


class HasBlocks(Protocol):
    """The configuration blocks that a model is built from."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def video(self) -> VideoConfig: ...

    @property
    def text(self) -> TextConfig: ...

    @property
    def objectives(self) -> ObjectivesConfig: ...


class SViLM(nn.Module):
    """Structured video-language pre-training (arXiv 2303.16341).

    `forward` is `objective(embed(inputs))`; a gradient cache calls the two halves itself.
    """

    def __init__(self, config: HasBlocks) -> None:
        super().__init__()
        self.config = config.objectives
        self.noisy = _is_noisy(config, uses_groups(config))
        self.encoder = DualEncoder(
            config.model, config.video, config.text, groups=uses_groups(config)
        )
        self.objectives = Objectives(
            config.objectives, config.model, config.video, unit_nouns=config.text.unit_nouns
        )

    def forward(self, inputs: ModelInputs) -> StepOutput:
        """One training step's loss and metrics; collective on all ranks."""
        return self.objective(self.embed(inputs))

    def objective(self, embeddings: Embeddings) -> StepOutput:
        """Loss and metrics from embeddings of the whole local batch."""
        with phase("objective"):
            return StepOutput(*self.objectives(embeddings))

    def embed(self, inputs: ModelInputs) -> Embeddings:
        """What the active objectives need of every sample; no sample sees another."""
        if self.training and self.noisy and inputs.seeds is None:
            raise ValueError(
                "this model is noisy in training and the inputs hold no seeds: "
                "give ModelInputs.seeds, or call eval()"
            )
        with phase("embed"):
            features = {
                source: self._encode_videos(inputs, source)
                for source in sorted(self.config.sources())
            }
            embeddings = self._embed_texts(inputs)
        if self.config.contrast.weight:
            video = features[self.config.contrast.video].video
            embeddings = embeddings._replace(videos=video, pair_ids=inputs.pair_ids)
        if self.config.grounding.weight:
            grounded = features[self.config.grounding.video]
            embeddings = embeddings._replace(groups=grounded.groups)
        if self.config.temporal.weight:
            blended = features[self.config.temporal.video]
            embeddings = embeddings._replace(
                segments=blended.segments,
                segment_mask=blended.segment_mask,
                paste_mask=inputs.paste_mask,
            )
        return embeddings._replace(empty_groups=_empty_groups(features))

    def _encode_videos(self, inputs: ModelInputs, source: VideoSource) -> VideoFeatures:
        frames = inputs.frames if source == "clean" else inputs.blended
        if frames is None:
            field = "frames" if source == "clean" else "blended"
            raise ValueError(
                f"an objective reads the {source} video, but ModelInputs.{field} is missing"
            )
        grounding, temporal = self.config.grounding, self.config.temporal
        outputs = VideoOutputs(
            groups=grounding.weight > 0 and grounding.video == source,
            segments=temporal.weight > 0 and temporal.video == source,
        )
        return self.encoder.encode_video(frames, inputs.seeds, outputs)

    def _embed_texts(self, inputs: ModelInputs) -> Embeddings:
        """Captions and prompted nouns, in one call of the text encoder."""
        sets = []
        if self.config.contrast.weight:
            sets.append(TextSequences(inputs.text_tokens, inputs.text_mask, inputs.seeds))
        if self.config.grounding.weight:
            sets.append(_noun_sequences(inputs))
        if not sets:
            return Embeddings()
        embedded = self.encoder.encode_texts(sets)
        texts = embedded[0] if self.config.contrast.weight else None
        if not self.config.grounding.weight:
            return Embeddings(texts=texts)
        assert inputs.noun_mask is not None
        nouns = embedded[-1].unflatten(0, tuple(inputs.noun_mask.shape))
        return Embeddings(texts=texts, nouns=nouns, noun_mask=inputs.noun_mask)


def build_model(config: HasBlocks) -> SViLM:
    """Builds the model that the blocks `model`, `video`, `text` and `objectives` describe.

    Draws initial weights from torch's generator; under `torch.device("meta")` nothing is allocated.
    """
    return SViLM(config)


def uses_groups(config: HasBlocks) -> bool:
    """Whether group tokens are part of the video encoder."""
    video = config.video
    needed = config.objectives.grounding.weight > 0 or video.pool == "groups"
    return video.num_groups > 0 and (needed or video.grouping.in_encoder == "always")


def _is_noisy(config: HasBlocks, groups: bool) -> bool:
    video, text = config.video, config.text
    rates = (video.drop.rate, video.drop.rate_max, video.drop_path, video.dropout)
    return bool(
        any(rates) or text.drop_path or text.dropout or (groups and video.grouping.mode == "gumbel")
    )


def _noun_sequences(inputs: ModelInputs) -> TextSequences:
    tokens, mask = inputs.noun_tokens, inputs.noun_token_mask
    if tokens is None or mask is None or inputs.noun_mask is None:
        raise ValueError("the grounding objective needs noun_tokens, noun_token_mask and noun_mask")
    seeds = None if inputs.seeds is None else noun_seeds(inputs.seeds, tokens.shape[1])
    return TextSequences(tokens.flatten(0, 1), mask.flatten(0, 1), seeds, nouns=True)


def _empty_groups(features: dict[VideoSource, VideoFeatures]) -> Tensor | None:
    """Share of empty groups in the last grouping block that ran, per clip."""
    for found in features.values():
        if found.assignments:
            return (found.assignments[-1].counts == 0).float().mean(dim=1)
    return None
