"""What the head of answers costs, for plans: FLOPs, and bytes that are kept for backward."""

from __future__ import annotations

from svilm_fast.models.activation_cost import FP32, Layer
from svilm_fast.models.flops import Flops, attention, block, encoded_tokens, product
from svilm_fast.models.precision import ElementSizes
from svilm_fast.objectives.features import Reads
from svilm_fast.tasks.base import TaskConfig
from svilm_fast.tasks.head_cost import HeadCost
from svilm_fast.tasks.qa.settings import QASettings


def qa_cost(
    config: TaskConfig, settings: QASettings, answers: int, precision: ElementSizes
) -> HeadCost:
    """Return the cost of a clip with its questions, which are padded to the tokenizer's length."""
    questions, length = settings.questions_per_clip, config.data.tokenizer.length
    uses_groups = config.objectives.reads().uses_groups(config.video)
    groups = config.video.num_groups if uses_groups else 0
    return HeadCost(
        reads=Reads.of("clean", "video", "groups", "tokens"),
        flops=_flops(config, settings, groups, answers),
        kept=_kept(config, settings, groups, answers, precision),
        sequences=questions,
        length=length,
    )


def _flops(config: TaskConfig, settings: QASettings, groups: int, answers: int) -> Flops:
    text, width, frozen = config.text, config.text.width, config.video.lock is True
    questions, length = settings.questions_per_clip, config.data.tokenizer.length
    tokens, rows = encoded_tokens(config.video), questions * length
    total = product(tokens, config.video.width, width, input_gradient=not frozen)
    total += product(groups, config.model.embed_dim, width, input_gradient=not frozen)
    layer = product(rows, width, width) * 2 + product(tokens + groups, width, 2 * width)
    layer += attention(rows, tokens + groups, width)
    layer += block(length, width, text.mlp_ratio) * questions
    total += layer * settings.layers
    return total + product(questions, width, 2 * width) + product(questions, 2 * width, answers)


def _kept(
    config: TaskConfig, settings: QASettings, groups: int, answers: int, precision: ElementSizes
) -> float:
    text, width, layers = config.text, config.text.width, settings.layers
    compute, stream = precision.compute, precision.stream
    questions, length = settings.questions_per_clip, config.data.tokenizer.length
    tokens, rows = encoded_tokens(config.video), questions * length
    context = tokens + groups
    # The frame tokens as an operand: a copy of its own where they are cast, or held by no tower.
    copied = compute < stream or config.video.lock is True
    found: float = copied * tokens * config.video.width * compute
    # The input of the context's norm; its output, cast again for every layer; keys and values.
    casts = layers if compute < stream else 1
    found += context * width * (stream + casts * compute + layers * 2 * compute)
    # Input and output of a layer's first norm, queries, and what was attended to.
    per_row = width * (stream + 3 * compute)
    if config.model.attention == "reference":
        per_row += text.heads * context * (FP32 + (compute if compute < FP32 else 0))
    else:
        per_row += text.heads * FP32
    own = Layer(
        rows=rows,
        length=length,
        width=width,
        hidden=int(width * text.mlp_ratio),
        heads=text.heads,
        precision=precision,
        attention=config.model.attention,
    )
    found += layers * (rows * per_row + own.saved)
    # Norm, both sides of the MLP's activation, logits and their softmax.
    return found + questions * (width * (stream + 5 * compute) + 2 * FP32 * answers)
