"""Bytes that a pass through the encoders keeps for backward, layer by layer.

Each function lists what autograd saves of one part, from the code of `svilm_fast.models`; the tests
compare the sums with the storages that autograd really saves. Statistics of norms, seeds and masks
are a few bytes per token; of these only the larger ones are counted. The locked levels of a tower
are its first ones, so no gradient passes through them: autograd saves nothing of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from svilm_fast.models.config import TextConfig, VideoConfig
from svilm_fast.models.locking import locked_levels
from svilm_fast.models.video_encoder import VideoOutputs
from svilm_fast.train.plan.workload import Precision, Workload

FP32 = 4


@dataclass(frozen=True)
class Activations:
    """Bytes of a pass of some pairs through both encoders, gradients of parameters apart.

    saved: kept for backward, by part. peak: the most that is alive from the start of forward to the
    end of backward. forward: the most that a pass without a graph holds.
    """

    saved: dict[str, float]
    peak: float
    forward: float

    @property
    def total(self) -> float:
        """Kept for backward in all."""
        return sum(self.saved.values())


@dataclass(frozen=True)
class Pass:
    """One run of a tower: what it keeps, and temporaries.

    backward: in backward. forward: in a block without a graph. embedding: at the start. locked: the
    same as `forward` where the tower has layers without a graph.
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
    precision: Precision
    attention: str
    joined: bool = False  # several spans: their attention is concatenated
    packed: bool = False  # attention of variable length keeps packed copies
    dropout: bool = False

    @property
    def input(self) -> float:
        """The block's input: all that checkpointing keeps."""
        return float(self.rows * self.width * self.precision.stream)

    @property
    def saved(self) -> float:
        """What backward of the block reads, its input included."""
        compute, stream = self.precision.compute, self.precision.stream
        # Inputs of both norms; their outputs as operands; q, k, v and the attended values.
        per_row = self.width * (2 * stream + 2 * compute + 4 * compute) + 4 * FP32
        per_row += 2 * self.hidden * compute  # before and behind GELU
        if self.attention == "reference":
            per_row += self.heads * self.length * (FP32 + (compute if compute < FP32 else 0))
        else:
            per_row += self.heads * FP32
        per_row += self.width * compute * (self.joined + 4 * self.packed + 2 * self.dropout)
        return float(self.rows * per_row)

    @property
    def temporary(self) -> float:
        """Gradients inside the MLP beside the one of the residual stream."""
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


def activations(
    workload: Workload, pairs: int, *, checkpoint_video: bool, checkpoint_text: bool
) -> Activations:
    """Bytes of a training pass of `pairs` pairs on one rank."""
    # Only what has a backward is computed again.
    checkpoint_video = checkpoint_video and trained_layers(workload.config.video) > 0
    checkpoint_text = checkpoint_text and trained_layers(workload.config.text) > 0
    reads = workload.reads
    videos = [
        _video(workload, pairs, reads.outputs(view), checkpoint_video)
        for view in sorted(reads.views)
    ]
    text = _text(workload, pairs, checkpoint_text)
    kept, dropped = _weight_copies(workload, checkpoint_video, checkpoint_text)
    saved = {"bf16 copies of weights": kept} if kept else {}
    for run in (*videos, text):
        for name, size in run.saved.items():
            saved[name] = saved.get(name, 0.0) + size
    alive = sum(saved.values())
    forward = max(max(run.forward, run.embedding) for run in (*videos, text))
    # Without checkpointing the temporaries of forward are what it keeps.
    moments = [alive + dropped + (text.forward if checkpoint_text else 0.0), alive + text.backward]
    # Backward runs against the order of forward: texts, then the videos from the last one.
    alive -= text.total
    moments.append(alive + dropped + text.locked)
    if videos:
        moments.append(alive + dropped + (videos[-1].forward if checkpoint_video else 0.0))
        start = max(videos[-1].embedding, videos[-1].locked)
        made = 0.0 if len(videos) > 1 else kept  # the first video copies the weights
        moments.append(alive - videos[-1].total - made + start)
    moments.append(alive + _embedding_gradients(workload))
    pending = 0.0
    for run in reversed(videos):
        moments.append(alive + pending + run.backward)
        alive -= run.total
        # The weights' gradients of one source wait for those of the other before they are added.
        pending = float(workload.parameters.products_video * workload.precision.compute)
    return Activations(saved, max(moments), forward + kept + dropped)


def _weight_copies(workload: Workload, video: bool, text: bool) -> tuple[float, float]:
    """Bytes of autocast's copies of weights: kept for backward, and held in forward alone.

    The copies of checkpointed blocks leave with the forward and are made again block by block.
    """
    if not workload.precision.copies_weights:
        return 0.0, 0.0
    sizes, size = workload.parameters, workload.precision.compute
    dropped = size * (sizes.products_video * video + sizes.products_text * text)
    every = size * (sizes.products_video + sizes.products_text + sizes.products_other)
    return float(every - dropped), float(dropped)


def _embedding_gradients(workload: Workload) -> float:
    """Dense gradients of the token embedding: one for captions, one for nouns, and their sum."""
    text, sets = workload.config.text, len(workload.text_lengths)
    if locked_levels(text.lock, text.depth):
        return 0.0
    dense = text.vocab_size * text.width * workload.precision.parameter
    return float(dense * (sets + (sets > 1)))


def _video(workload: Workload, pairs: int, outputs: VideoOutputs, checkpointed: bool) -> Pass:
    config, precision = workload.config.video, workload.precision
    tokens, groups = workload.tokens, workload.groups
    length = tokens + groups + (config.pool == "class_token")
    layer = Layer(
        rows=pairs * length,
        length=length,
        width=config.width,
        hidden=int(config.width * config.mlp_ratio),
        heads=config.heads,
        precision=precision,
        attention=workload.config.model.attention,
        packed=workload.on_gpu and config.drop.rate_max is not None,
        dropout=config.dropout > 0,
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
    grouping = 0
    if groups:
        last_read = outputs.groups or config.pool == "groups"
        layers = [n for n in config.grouping_layers if n >= locked]
        grouping = sum(n < config.depth or last_read for n in layers)
    group_block = pairs * _grouping(config, tokens, groups, precision, workload.on_gpu)
    # Each grouping block reads the states before it, which the concatenation behind it replaces.
    read = pairs * length * config.width * precision.stream
    # Of a head alone, the gradient of its norm's output.
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
        final += 4 if workload.on_gpu else FP32 * config.num_segments
    if outputs.tokens:
        final += FP32 * config.width
    saved["video outputs"] = float(pairs * (length * config.width * precision.stream))
    saved["video outputs"] += pairs * tokens * (final - config.width * precision.stream)
    return Pass(saved, backward, layer.forward, embedding, without_graph)


def trained_layers(config: VideoConfig | TextConfig) -> int:
    """How many transformer layers of a tower are trained: the last ones."""
    return min(config.depth, max(0, config.depth + 1 - locked_levels(config.lock, config.depth)))


def _grouping(
    config: VideoConfig, tokens: int, groups: int, precision: Precision, on_gpu: bool
) -> float:
    """What one grouping block keeps of a clip beside the states that it reads."""
    compute, stream, width = precision.compute, precision.stream, config.width
    hidden, mixed = int(width * config.mlp_ratio), int(width * config.grouping.mixer_ratio)
    # The normed tokens as operand of keys, values and the grouping op; keys and values.
    per_token = width * compute + 2 * width * compute + 2 * FP32
    if on_gpu:
        per_token += 4  # the index
    else:
        # The reference works in fp32 on tokens of its own and keeps softmax and assignment.
        per_token += 2 * FP32 * groups + (width * FP32 if compute < FP32 else 0)
    # Mixer over the groups of every channel; two MLPs, norms and projections of every group.
    per_clip = width * (2 * mixed + groups) * compute
    per_group = 4 * hidden * compute + width * (5 * stream + 11 * compute)
    return float(tokens * per_token + per_clip + groups * per_group)


def _text(workload: Workload, pairs: int, checkpointed: bool) -> Pass:
    config, precision = workload.config.text, workload.precision
    lengths = list(workload.text_lengths.values())
    if not lengths:
        return Pass({})
    rows = pairs * sum(count * length for count, length in lengths)
    layer = Layer(
        rows=rows,
        length=max(length for _, length in lengths),
        width=config.width,
        hidden=int(config.width * config.mlp_ratio),
        heads=config.heads,
        precision=precision,
        attention=workload.config.model.attention,
        joined=len(lengths) > 1,
        packed=workload.on_gpu,
        dropout=config.dropout > 0,
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
    # Of a head alone, the gradient of its norm's output.
    backward = layer.temporary if trained else layer.input
    if checkpointed:
        backward += layer.saved - layer.input
    return Pass(saved, backward, layer.forward, locked=without_graph)
