"""Questions that attend to the frame and group tokens of a video, and a classifier of answers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svilm_fast.core.philox import Site, StepSeeds, uniform
from svilm_fast.models.attention import KeyPadding, attend
from svilm_fast.models.dual_encoder import DualEncoder
from svilm_fast.models.features import VideoFeatures
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.noise import part_seeds
from svilm_fast.models.precision import project
from svilm_fast.models.text_encoder import TextSequences
from svilm_fast.models.transformer import Block, Span
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.tasks.base import TaskConfig
from svilm_fast.tasks.qa.settings import QASettings

IGNORED = -100  # the label of a question that is not learned
# The random stream of the head's dropout, beyond those of the encoders' layers.
DROPOUT_LAYER = 8192


class QAInputs(NamedTuple):
    """Q questions about each of b clips.

    frames: uint8 [b, F, H, W, 3]. tokens: int64 [b, Q, S]. mask: bool [b, Q, S], the first token of
    every question is real. labels: int64 [b, Q], classes of the answers or IGNORED. seeds: of the
    step.
    """

    frames: Tensor
    tokens: Tensor
    mask: Tensor
    labels: Tensor
    seeds: StepSeeds


class QAOutput(NamedTuple):
    """loss: 0-dim; metrics: 0-dim, detached."""

    loss: Tensor
    metrics: dict[str, Tensor]


class VideoAttention(nn.Module):
    """Multi-head attention of the tokens of all questions about a video to its tokens."""

    def __init__(self, width: int, heads: int, backend: str) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor, padding: KeyPadding | None) -> Tensor:
        """Queries [b, L, C] attend to context [b, N, C]; returns [b, L, C]."""
        query = self.query(queries).unflatten(-1, (self.heads, -1))
        both = self.key_value(context).unflatten(-1, (2, self.heads, -1))
        key, value = both.unbind(dim=2)
        found = attend(query, key, value, padding=padding, backend=self.backend)
        return self.output(found.flatten(2))


class FusionLayer(nn.Module):
    """x + cross-attention(norm(x)), then a transformer block over the tokens of each question."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, backend: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cross = VideoAttention(width, heads, backend)
        self.block = Block(width, heads, mlp_ratio, backend)

    def forward(
        self, states: Tensor, context: Tensor, padding: KeyPadding | None, span: Span
    ) -> Tensor:
        """Question states [b, Q, S, C] and video context [b, N, C]; returns [b, Q, S, C]."""
        queries = self.norm(states).flatten(1, 2)
        states = states + self.cross(queries, context, padding).view_as(states)
        return self.block(states.flatten(0, 2), (span,)).view_as(states)


class AnswerHead(nn.Module):
    """From token states of questions and of their video to logits of the answers.

    Width and heads are those of the text tower. The classifier is an MLP of twice that width on the
    first token of a question.
    """

    def __init__(self, config: TaskConfig, settings: QASettings, answers: int) -> None:
        super().__init__()
        text, width = config.text, config.text.width
        self.dropout = settings.dropout
        self.frame_projection = nn.Linear(config.video.width, width)
        self.group_projection = nn.Linear(config.model.embed_dim, width)
        self.context_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            FusionLayer(width, text.heads, text.mlp_ratio, config.model.attention)
            for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.classify = nn.Linear(2 * width, answers)

    def forward(
        self, questions: Tensor, mask: Tensor, video: VideoFeatures, seeds: StepSeeds | None
    ) -> Tensor:
        """Return logits [b, Q, answers].

        questions: states [b, Q, S, C] of the text tower; mask: bool [b, Q, S]. seeds: of the
        questions, keys int64 [b * Q], for dropout; None: no dropout.
        """
        batch, count, length, _ = questions.shape
        context, padding = self._context(video)
        positions = torch.arange(length, device=mask.device)
        span = Span(batch * count, length, positions, KeyPadding(mask.flatten(0, 1)))
        for layer in self.layers:
            questions = layer(questions, context, padding, span)
        hidden = F.gelu(self.expand(self.norm(questions[:, :, 0])))
        if seeds is not None and self.dropout > 0:
            channels = torch.arange(hidden.shape[-1], device=hidden.device)
            numbers = uniform(seeds.at(Site.DROPOUT, DROPOUT_LAYER), channels).view_as(hidden)
            hidden = hidden * (numbers >= self.dropout).to(hidden.dtype) / (1 - self.dropout)
        return self.classify(hidden)

    def _context(self, video: VideoFeatures) -> tuple[Tensor, KeyPadding | None]:
        """Return frame and group tokens [b, N, C], and which of them are real."""
        assert video.tokens is not None
        parts = [project(self.frame_projection, video.tokens)]
        mask = video.token_mask
        if video.groups is not None:
            parts.append(project(self.group_projection, video.groups))
            if mask is not None:
                mask = F.pad(mask, (0, video.groups.shape[1]), value=True)
        context = self.context_norm(torch.cat(parts, dim=1))
        return context, None if mask is None else KeyPadding(mask)


class QuestionAnswerer(nn.Module):
    """The two towers of pre-training and a head of answers."""

    def __init__(self, config: TaskConfig, settings: QASettings, answers: int) -> None:
        super().__init__()
        groups = config.objectives.reads().uses_groups(config.video)
        self.frozen_video = config.video.lock is True
        self.frozen_text = config.text.lock is True
        self.encoder = DualEncoder(config.model, config.video, config.text, groups=groups)
        self.head = AnswerHead(config, settings, answers)
        initialise(self.head, config.model.initialisation)
        if not groups:
            self.head.group_projection.requires_grad_(False)
        # The head reads token states, so the projections to the shared space are not trained.
        self.encoder.video.projection.requires_grad_(False)
        self.encoder.text.projection.requires_grad_(False)

    def answer(
        self, frames: Tensor, tokens: Tensor, mask: Tensor, seeds: StepSeeds | None = None
    ) -> Tensor:
        """Return logits [b, Q, answers], at least fp32; arguments as in QAInputs.

        Without `seeds` nothing is random.
        """
        outputs = VideoOutputs(groups=True, segments=False, tokens=True)
        of_video = None if self.frozen_video else seeds
        video = self.encoder.encode_video(frames, of_video, outputs)
        of_questions = None if seeds is None else part_seeds(seeds, tokens.shape[1])
        of_text = None if self.frozen_text else of_questions
        sequences = TextSequences(tokens.flatten(0, 1), mask.flatten(0, 1), of_text)
        states = self.encoder.text.states(sequences).unflatten(0, tuple(tokens.shape[:2]))
        logits = self.head(states, mask, video, of_questions)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(self, inputs: QAInputs) -> QAOutput:
        """Return the cross-entropy over the questions, and the accuracy of those with a label.

        The loss is a sum over the labelled questions divided by all of them, whose number is equal
        on all ranks: so the average over the ranks is the loss of the global batch.
        """
        seeds = inputs.seeds if self.training else None
        logits = self.answer(inputs.frames, inputs.tokens, inputs.mask, seeds).flatten(0, 1)
        labels = inputs.labels.flatten()
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / len(labels)
        known = labels != IGNORED
        right = (logits.argmax(1) == labels).sum() / known.sum().clamp_min(1)
        return QAOutput(loss, {"accuracy_qa": right.detach().float()})
