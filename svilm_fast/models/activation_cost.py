"""Bytes that a pass through a tower keeps for backward, layer by layer.

Each function lists what autograd saves of one part, following the code of this package; the tests
compare the sums with the storages that autograd really saves. Norm statistics, seeds and masks take
a few bytes per token; only the larger ones are counted. The locked levels of a tower are its first
ones; no gradient passes through them, so autograd saves nothing for them.
docs/decisions/0011-activation-memory.md compares this model with measurements on fake tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from svilm_fast.models.config import Activation, TextConfig, VideoConfig
from svilm_fast.models.locking import locked_levels, trained_layers
from svilm_fast.models.precision import ElementSizes
from svilm_fast.models.video_encoder import VideoOutputs

FP32 = 4


@dataclass(frozen=True)
class PassRequest:
    """What every part of a pass has in common.

    Attributes:
        pairs: clips or captions of the pass.
        precision: bytes of an element.
        attention: `model.attention`.
        on_gpu: whether the fused kernels and packed attention run.
    """

    pairs: int
    precision: ElementSizes
    attention: str
    on_gpu: bool


@dataclass(frozen=True)
class Pass:
    """Bytes of one run of a tower.

    Attributes:
        saved: kept for backward, by part.
        backward: temporaries of backward.
        forward: temporaries of a block without a graph.
        embedding: temporaries of the embedding, before the first block.
        locked: like `forward` where the tower has layers without a graph, else 0.
    """

    saved: dict[str, float]
    backward: float = 0.0
    forward: float = 0.0
    embedding: float = 0.0
    locked: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.saved.values())


@dataclass(frozen=True)
class Layer:
    """One transformer block on `rows` tokens, in sequences of `length`."""

    rows: int
    length: int
    width: int
    hidden: int
    heads: int
    precision: ElementSizes
    attention: str
    joined: bool = False  # the attention outputs of several spans are concatenated
    packed: bool = False  # variable-length attention keeps packed copies
    dropout: bool = False
    activation: Activation = "gelu"

    @property
    def input(self) -> float:
        """The block's input: all that checkpointing keeps."""
        return float(self.rows * self.width * self.precision.stream)

    @property
    def saved(self) -> float:
        """What backward of the block reads, including its input."""
        compute, stream = self.precision.compute, self.precision.stream
        # Inputs of both norms; their outputs as operands; q, k, v and the attended values.
        per_row = self.width * (2 * stream + 2 * compute + 4 * compute) + 4 * FP32
        # Before and after the activation; QuickGELU also keeps its sigmoid.
        per_row += (2 + (self.activation == "quick_gelu")) * self.hidden * compute
        if self.attention == "reference":
            per_row += self.heads * self.length * (FP32 + (compute if compute < FP32 else 0))
        else:
            per_row += self.heads * FP32
        per_row += self.width * compute * (self.joined + 4 * self.packed + 2 * self.dropout)
        return float(self.rows * per_row)

    @property
    def temporary(self) -> float:
        """Gradients inside the MLP, in addition to that of the residual stream."""
        per_row = 2 * self.hidden * self.precision.compute + self.width * self.precision.stream
        if self.attention == "reference":
            per_row = max(per_row, 2 * self.heads * self.length * FP32)
        return float(self.rows * per_row)

    @property
    def forward(self) -> float:
        """The most that the block holds without a graph: residual stream, norm, MLP."""
        per_row = self.width * (3 * self.precision.stream + self.precision.compute)
        per_row += 2 * self.hidden * self.precision.compute
        return float(self.rows * per_row)


def video_pass(
    config: VideoConfig,
    request: PassRequest,
    *,
    tokens: int,
    groups: int,
    outputs: VideoOutputs,
    checkpointed: bool,
) -> Pass:
    """Return the bytes of one view of the clips; `tokens` and `groups` are those encoded."""
    pairs, precision = request.pairs, request.precision
    length = tokens + groups + config.extra_tokens
    layer = Layer(
        rows=pairs * length,
        length=length,
        width=config.width,
        hidden=int(config.width * config.mlp_ratio),
        heads=config.heads,
        precision=precision,
        attention=request.attention,
        packed=request.on_gpu and config.drop.rate_max is not None,
        dropout=config.dropout > 0,
        activation=config.activation,
    )
    pixels = config.tubelet * config.patch**2 * 3
    # uint8 tubelets, fp32 pixels twice: before and after normalisation.
    embedding = float(pairs * tokens * pixels * (1 + 2 * FP32))
    locked = locked_levels(config.lock, config.depth)
    trained = trained_layers(config)
    without_graph = layer.forward if trained < config.depth else 0.0
    if config.lock is True:
        return Pass({}, 0.0, layer.forward, embedding, without_graph)
    dropped = tokens < config.num_tokens
    saved = {}
    if not locked:
        operands = pixels * precision.compute + 16.0 * dropped
        saved["video embedding"] = pairs * tokens * operands
        if config.pre_norm:
            saved["video embedding"] += layer.input
    grouping = 0
    if groups:
        last_read = outputs.groups or config.pool == "groups"
        layers = [n for n in config.grouping_layers if n >= locked]
        grouping = sum(n < config.depth or last_read for n in layers)
    group_block = pairs * _grouping(config, tokens, groups, precision, request.on_gpu)
    # A grouping block keeps the states that it reads; the concatenation after it makes new ones.
    read = pairs * length * config.width * precision.stream
    # If only the head is trained: the gradient of its norm's output.
    backward = layer.temporary if trained else layer.input
    if checkpointed:
        saved["video blocks"] = trained * layer.input
        saved["grouping blocks"] = grouping * read
        block = max(layer.saved - layer.input, group_block if grouping else 0.0)
        backward += block
    else:
        saved["video blocks"] = trained * layer.saved
        saved["grouping blocks"] = grouping * (read + group_block)
    masked = FP32 if config.drop.rate_max is not None else 0
    final = config.width * (precision.stream + masked)
    if outputs.segments:
        final += 4 if request.on_gpu else FP32 * config.num_segments
    if outputs.tokens:
        final += FP32 * config.width
    if outputs.pixels:
        final += FP32 * pixels
    saved["video outputs"] = float(pairs * (length * config.width * precision.stream))
    saved["video outputs"] += pairs * tokens * (final - config.width * precision.stream)
    return Pass(saved, backward, layer.forward, embedding, without_graph)


def _grouping(
    config: VideoConfig, tokens: int, groups: int, precision: ElementSizes, on_gpu: bool
) -> float:
    """Return what one grouping block keeps of a clip, without the states that it reads."""
    compute, stream, width = precision.compute, precision.stream, config.width
    hidden, mixed = int(width * config.mlp_ratio), int(width * config.grouping.mixer_ratio)
    # The normed tokens as operand of keys, values and the grouping op; keys and values.
    per_token = width * compute + 2 * width * compute + 2 * FP32
    if on_gpu:
        per_token += 4  # the index
    else:
        # The reference works on an fp32 copy of the tokens and keeps softmax and assignment.
        per_token += 2 * FP32 * groups + (width * FP32 if compute < FP32 else 0)
    # Mixer over the groups of every channel; two MLPs, norms and projections of every group.
    per_clip = width * (2 * mixed + groups) * compute
    per_group = 4 * hidden * compute + width * (5 * stream + 11 * compute)
    return float(tokens * per_token + per_clip + groups * per_group)


def text_pass(
    config: TextConfig,
    request: PassRequest,
    lengths: Sequence[tuple[int, int]],
    *,
    checkpointed: bool,
) -> Pass:
    """Return the bytes of captions and nouns; lengths: sequences of a pair, padded length."""
    precision = request.precision
    if not lengths:
        return Pass({})
    rows = request.pairs * sum(count * length for count, length in lengths)
    layer = Layer(
        rows=rows,
        length=max(length for _, length in lengths),
        width=config.width,
        hidden=int(config.width * config.mlp_ratio),
        heads=config.heads,
        precision=precision,
        attention=request.attention,
        joined=len(lengths) > 1,
        packed=request.on_gpu,
        dropout=config.dropout > 0,
        activation=config.activation,
    )
    trained = trained_layers(config)
    without_graph = layer.forward if trained < config.depth else 0.0
    if config.lock is True:
        return Pass({}, 0.0, layer.forward, locked=without_graph)
    ids = 0.0 if locked_levels(config.lock, config.depth) else 8.0
    saved = {
        "text blocks": trained * (layer.input if checkpointed else layer.saved),
        "text ends": rows * (ids + config.width * precision.stream),
    }
    if config.embedding_norm and ids:
        saved["text ends"] += layer.input
    # If only the head is trained: the gradient of its norm's output.
    backward = layer.temporary if trained else layer.input
    if checkpointed:
        backward += layer.saved - layer.input
    return Pass(saved, backward, layer.forward, locked=without_graph)
