"""FLOPs of the encoders, from their sizes alone, and parameter counts.

Counted are matrix products, a multiply-add as two; norms, softmax, noise and look-ups are left out,
as in the usual accounting of model FLOPs, and so is what activation checkpointing recomputes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from svilm_fast.models.config import TextConfig, VideoConfig
from svilm_fast.models.locking import locked_levels
from svilm_fast.models.token_dropping import keep_count
from svilm_fast.models.video_encoder import VideoOutputs


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward and of its backward."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Forward and backward together."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.forward * times, self.backward * times)

    def locked(self, locked: bool = True) -> Flops:
        """The same without its backward, if `locked`."""
        return Flops(self.forward) if locked else self


def product(rows: int, inner: int, columns: int, *, input_gradient: bool = True) -> Flops:
    """A [rows, inner] x [inner, columns] product; backward has one product per operand."""
    forward = 2 * rows * inner * columns
    return Flops(forward, forward * (2 if input_gradient else 1))


def attention(queries: int, keys: int, width: int) -> Flops:
    """The two products of softmax attention over all heads."""
    return product(queries, width, keys) + product(queries, keys, width)


def block(length: int, width: int, mlp_ratio: float) -> Flops:
    """A transformer block on one sequence."""
    projections = product(length, width, 3 * width) + product(length, width, width)
    return projections + attention(length, length, width) + mlp(length, width, mlp_ratio)


def mlp(rows: int, width: int, ratio: float) -> Flops:
    """A two-layer MLP back to its own width."""
    hidden = int(width * ratio)
    return product(rows, width, hidden) + product(rows, hidden, width)


def grouping_block(tokens: int, config: VideoConfig) -> Flops:
    """A grouping block on one clip; the assignment projects groups, never tokens."""
    groups, width = config.num_groups, config.width
    hidden = int(width * config.grouping.mixer_ratio)
    mixer = product(width, groups, hidden) + product(width, hidden, groups)
    cross = (
        product(groups, width, width) * 2
        + product(tokens, width, 2 * width)
        + attention(groups, tokens, width)
    )
    # Query, absorbed key, value and output, then the logits and the pooling of the op.
    assignment = product(groups, width, width) * 4 + product(groups, width, tokens) * 2
    return mixer + cross + assignment + mlp(groups, width, config.mlp_ratio) * 2


def encoded_tokens(config: VideoConfig) -> int:
    """Video tokens of a clip in training; the mean one for a range of drop rates."""
    drop = config.drop
    least = keep_count(config.grid, drop.rate, drop.pattern)
    if drop.rate_max is None:
        return least
    return (least + keep_count(config.grid, drop.rate_max, drop.pattern)) // 2


def video_flops(
    config: VideoConfig,
    embed_dim: int,
    *,
    tokens: int | None = None,
    groups: bool = True,
    outputs: VideoOutputs | None = None,
) -> Flops:
    """One clip through the video encoder.

    Args:
        config: sizes.
        embed_dim: D.
        tokens: encoded video tokens; None: all of them, as in evaluation.
        groups: whether group tokens are part of the encoder.
        outputs: embeddings computed besides that of the video; all by default.
    """
    outputs = outputs or VideoOutputs()
    tokens = config.num_tokens if tokens is None else tokens
    grouped = groups and config.num_groups > 0
    extra = (config.num_groups if grouped else 0) + config.extra_tokens
    pixels = config.tubelet * config.patch**2 * 3
    locked = locked_levels(config.lock, config.depth)
    total = product(tokens, pixels, config.width, input_gradient=False).locked(locked > 0)
    total += _layers(block(tokens + extra, config.width, config.mlp_ratio), config.depth, locked)
    if grouped:
        last_read = outputs.groups or config.pool == "groups"
        for layer in config.grouping_layers:
            if layer < config.depth or last_read:
                total += grouping_block(tokens, config).locked(layer < locked)
    rows = 1 + (config.num_segments if outputs.segments else 0)
    rows += config.num_groups if grouped and outputs.groups else 0
    return total + product(rows, config.width, embed_dim).locked(locked > config.depth + 1)


def text_flops(config: TextConfig, embed_dim: int, length: int) -> Flops:
    """One sequence of `length` tokens, padding included, through the text encoder."""
    locked = locked_levels(config.lock, config.depth)
    total = _layers(block(length, config.width, config.mlp_ratio), config.depth, locked)
    return total + product(1, config.width, embed_dim).locked(locked > config.depth + 1)


def _layers(layer: Flops, depth: int, locked: int) -> Flops:
    """`depth` equal layers, of which the first `locked - 1` have no backward."""
    without = min(max(locked - 1, 0), depth)
    return layer.locked() * without + layer * (depth - without)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of every direct part of a model, and their sum under `total`.

    Works on the meta device. Parameters of the model itself count under its class name.
    """
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in model.named_children()
    }
    own = sum(parameter.numel() for parameter in model.parameters(recurse=False))
    if own:
        counts[type(model).__name__] = own
    return counts | {"total": sum(counts.values())}
