"""Network expansion: a wider and deeper video tower that computes what the smaller one does.

Width grows by a whole factor k. The residual stream holds every channel k times, so that each layer
norm has the mean and variance of before: what writes into the stream gets its rows repeated, what
reads it gets its columns split into k parts that add up to the old ones. The parts differ by noise,
without which the copies of a channel would get equal gradients for ever. Inside a layer (heads, the
hidden units of an MLP) units are added whose output weights are zero. A new layer is a copy of the
one before it whose two branches end in zero weights, so that it is the identity.

Chen et al., "Net2Net" (arXiv 1511.05641), and Wang et al., "LEMON" (arXiv 2310.07999), grow
networks in related ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from svilm_fast.models.config import VideoConfig
from svilm_fast.models.grouping_block import CrossAttention, TokenAssigner
from svilm_fast.models.transformer import MLP, Block, SelfAttention
from svilm_fast.models.tubelet_embedding import TubeletEmbedding
from svilm_fast.models.video_encoder import LearnedTokens, VideoEncoder, VideoOutputs


class CannotGrowError(ValueError):
    """The function of a model cannot be kept exactly at the wanted sizes."""


def grown_layer(layer: int, depth: int, wanted: int) -> int:
    """The last layer of the grown tower that stands for the first `layer` old ones (from 1)."""
    return layer * wanted // depth


def grown_sizes(
    video: VideoConfig, width: int | None, depth: int | None, heads: int | None
) -> dict[str, Any]:
    """Check the wanted sizes; returns them as settings of `video`.

    None keeps the depth and the width, and of the heads their width. Raises CannotGrowError.
    """
    wanted = width or video.width
    layers = depth or video.depth
    if wanted % video.width:
        raise CannotGrowError(
            f"width {wanted} is not a multiple of the model's {video.width}: layer norms keep "
            f"their values only if every channel is repeated equally often; use {video.width * 2}"
        )
    if layers < video.depth:
        raise CannotGrowError(
            f"depth {layers} is below the model's {video.depth}: it can only rise"
        )
    head_width = video.width // video.heads
    many = heads or wanted // head_width
    if many < video.heads or wanted % many or wanted // many < head_width:
        raise CannotGrowError(
            f"{many} heads of width {wanted}/{many} cannot hold the model's {video.heads} heads of "
            f"width {head_width}: give a divisor of {wanted} from {video.heads} to "
            f"{wanted // head_width}"
        )
    sizes: dict[str, Any] = {"width": wanted, "depth": layers, "heads": many}
    if video.num_groups:
        numbers = (grown_layer(one, video.depth, layers) for one in video.grouping_layers)
        sizes["grouping"] = {"layers": list(numbers)}
    return sizes


@dataclass
class Expansion:
    """Grows a model into one of other sizes; only its video encoder may differ.

    Attributes:
        noise: deviation of the noise on the split weights, as a share of their own.
        seed: of the noise.
    """

    noise: float = 0.5
    seed: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def fill(self, old: nn.Module, new: nn.Module, name: str = "") -> None:
        """Give `new` the function of `old`. Raises CannotGrowError naming what has no rule."""
        for kind, rule in RULES:
            if isinstance(old, kind):
                rule(self, old, new)
                return
        for key, value in old.named_parameters(recurse=False):
            target = getattr(new, key)
            if target.shape != value.shape:
                raise CannotGrowError(
                    f"{name}{key} of {type(old).__name__} has shape {list(value.shape)} and would "
                    f"get {list(target.shape)}, for which there is no exact rule"
                )
            target.copy_(value)
        for key, buffer in old.named_buffers(recurse=False):
            getattr(new, key).copy_(buffer)
        for key, part in old.named_children():
            if isinstance(old, VideoEncoder) and key in ("blocks", "grouping_blocks"):
                continue
            self.fill(part, getattr(new, key), f"{name}{key}.")
        if isinstance(old, VideoEncoder):
            self._layers(old, new)

    def _layers(self, old: VideoEncoder, new: Any) -> None:
        depth, wanted = len(old.blocks), len(new.blocks)
        for number, block in enumerate(old.blocks):
            first, end = (grown_layer(n, depth, wanted) for n in (number, number + 1))
            self.fill(block, new.blocks[first], f"blocks.{number}.")
            for place in range(first + 1, end):
                self._identity(block, new.blocks[place], number)
        for layer, block in old.grouping_blocks.items() if old.num_groups else ():
            there = str(grown_layer(int(layer), depth, wanted))
            self.fill(block, new.grouping_blocks[there], f"grouping_blocks.{layer}.")

    def _identity(self, old: nn.Module, new: Block, number: int) -> None:
        self.fill(old, new, f"blocks.{number}.")
        for last in (new.attention.output, new.mlp.contract):
            last.weight.zero_()
            last.bias.zero_()

    def rows(self, value: Tensor, target: Tensor, axis: int = 0) -> Tensor:
        """Repeat a written axis until it has the size of the target's."""
        times = [1] * value.dim()
        times[axis] = target.shape[axis] // value.shape[axis]
        return value.repeat(times)

    def columns(self, value: Tensor, size: int) -> Tensor:
        """Split the read axis, the last one, into parts that add up to `value`."""
        parts = size // value.shape[-1]
        if parts == 1:
            return value
        drawn = torch.randn(parts, *value.shape, generator=self.generator, dtype=torch.float64).to(
            value
        )
        scale = self.noise * value.std(correction=0) / parts
        noise = (drawn - drawn.mean(dim=0)) * scale
        return torch.cat(list(value / parts + noise), dim=-1)

    def linear(self, old: nn.Linear, new: nn.Linear) -> None:
        """Read and write the stream where the sizes grew."""
        new.weight.copy_(self.rows(self.columns(old.weight, new.in_features), new.weight))
        if old.bias is not None:
            new.bias.copy_(self.rows(old.bias, new.bias))

    def norm(self, old: nn.LayerNorm, new: nn.LayerNorm) -> None:
        """Repeat gain and bias."""
        for name in ("weight", "bias"):
            value, target = getattr(old, name), getattr(new, name)
            target.copy_(self.rows(value, target))

    def last_axis(self, old: nn.Module, new: nn.Module) -> None:
        """Repeat the channels of learned vectors."""
        for name, value in old.named_parameters(recurse=False):
            target = getattr(new, name)
            target.copy_(self.rows(value, target, axis=value.dim() - 1))

    def embedding(self, old: TubeletEmbedding, new: TubeletEmbedding) -> None:
        """Repeat the channels of pixels and positions."""
        self.linear(old.projection, new.projection)
        self.last_axis(old, new)

    def mlp(self, old: MLP, new: MLP) -> None:
        """New hidden units are copies of the old ones that are not read yet."""
        hidden = old.expand.out_features
        added = new.expand.out_features - hidden
        weight = self.columns(old.expand.weight, new.expand.in_features)
        again = torch.arange(added, device=weight.device) % hidden
        new.expand.weight.copy_(torch.cat([weight, self._moved(weight[again])]))
        new.expand.bias.copy_(torch.cat([old.expand.bias, old.expand.bias[again]]))
        self._read_by(old.contract, new.contract, hidden)

    def _read_by(self, old: nn.Linear, new: nn.Linear, read: int) -> None:
        """Write the stream from the first `read` units; the others have weight zero."""
        wide = self.rows(old.weight, new.weight)
        new.weight.zero_()
        new.weight[:, :read].copy_(wide)
        new.bias.copy_(self.rows(old.bias, new.bias))

    def _moved(self, value: Tensor) -> Tensor:
        """The same with noise, so that copies do not stay copies."""
        drawn = torch.randn(value.shape, generator=self.generator, dtype=torch.float64).to(value)
        return value + self.noise * value.std(correction=0) * drawn if value.numel() else value

    def _heads(
        self,
        value: Tensor,
        heads: tuple[int, int],
        widths: tuple[int, int],
        *,
        role: str,
    ) -> Tensor:
        """Rows of queries, keys or values of all heads [h * d, ...], for more and wider heads.

        New heads are copies of old ones. A new number of an old head is zero in the keys and the
        values, so that it has no effect; queries make up for the softmax's division by sqrt(d).
        """
        (old, many), (width, wide) = heads, widths
        found = value.unflatten(0, (old, width))
        full = found.new_zeros(many, wide, *found.shape[2:])
        again = torch.arange(many, device=value.device) % old
        full[:, :width] = found[again]
        full[old:, :width] = self._moved(full[old:, :width])
        if role == "query":
            full *= math.sqrt(wide / width)
            if wide > width:
                fresh = self._moved(found[again, : min(width, wide - width)])
                full[:, width : width + fresh.shape[1]] = fresh
        return full.flatten(0, 1)

    def _read_heads(
        self, old: nn.Linear, new: nn.Linear, heads: tuple[int, int], widths: tuple[int, int]
    ) -> None:
        """The output projection: new heads and new numbers of a head have weight zero."""
        (few, many), (width, wide) = heads, widths
        found = self.rows(old.weight, new.weight).unflatten(1, (few, width))
        full = found.new_zeros(len(found), many, wide)
        full[:, :few, :width] = found
        new.weight.copy_(full.flatten(1))
        new.bias.copy_(self.rows(old.bias, new.bias))

    def _projections(
        self,
        old: nn.Linear,
        new: nn.Linear,
        roles: tuple[str, ...],
        heads: tuple[int, int],
        widths: tuple[int, int],
    ) -> None:
        weight = self.columns(old.weight, new.in_features)
        for source, target in ((weight, new.weight), (old.bias, new.bias)):
            parts = source.chunk(len(roles))
            grown = [
                self._heads(part, heads, widths, role=role)
                for part, role in zip(parts, roles, strict=True)
            ]
            target.copy_(torch.cat(grown))

    def self_attention(self, old: SelfAttention, new: SelfAttention) -> None:
        """More heads, or wider ones."""
        heads, widths = _head_sizes(old, old.output, new, new.output)
        self._projections(old.qkv, new.qkv, ("query", "key", "value"), heads, widths)
        self._read_heads(old.output, new.output, heads, widths)

    def cross_attention(self, old: CrossAttention, new: CrossAttention) -> None:
        """The same for queries from the groups."""
        heads, widths = _head_sizes(old, old.output, new, new.output)
        self._projections(old.query, new.query, ("query",), heads, widths)
        self._projections(old.key_value, new.key_value, ("key", "value"), heads, widths)
        self._read_heads(old.output, new.output, heads, widths)

    def assigner(self, old: TokenAssigner, new: TokenAssigner) -> None:
        """One head whose width is that of the stream."""
        widths = (old.query.in_features, new.query.in_features)
        self._projections(old.query, new.query, ("query",), (1, 1), widths)
        for kind in ("key", "value"):
            for part in ("weight", "bias"):
                value, target = (getattr(one, f"{kind}_{part}") for one in (old, new))
                if part == "weight":
                    value = self.columns(value, widths[1])
                target.copy_(self._heads(value, (1, 1), widths, role=kind))
        self._read_heads(old.output, new.output, (1, 1), widths)


def _head_sizes(
    old: Any, output: nn.Linear, new: Any, wide: nn.Linear
) -> tuple[tuple[int, int], tuple[int, int]]:
    return (old.heads, new.heads), (
        output.in_features // old.heads,
        wide.in_features // new.heads,
    )


RULES: tuple[tuple[type[nn.Module], Callable[..., None]], ...] = (
    (TubeletEmbedding, Expansion.embedding),
    (LearnedTokens, Expansion.last_axis),
    (SelfAttention, Expansion.self_attention),
    (CrossAttention, Expansion.cross_attention),
    (TokenAssigner, Expansion.assigner),
    (MLP, Expansion.mlp),
    (nn.Linear, Expansion.linear),
    (nn.LayerNorm, Expansion.norm),
)


@torch.no_grad()
def difference(old: VideoEncoder, new: VideoEncoder, clips: int = 2, seed: int = 0) -> float:
    """Largest difference of all outputs of two encoders on random clips, in float64.

    The tokens and the pooled states of the wider one are compared with repeated ones.
    """
    config, generator = old.config, torch.Generator().manual_seed(seed)
    shape = (clips, config.frames, config.image_size, config.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    outputs = VideoOutputs(tokens=True)
    found = [encoder.double().eval()(frames, None, outputs) for encoder in (old, new)]
    largest = 0.0
    for name in ("video", "segments", "groups", "tokens", "pooled"):
        before, after = (getattr(one, name) for one in found)
        if before is not None:
            repeated = before.repeat(*[1] * (before.dim() - 1), after.shape[-1] // before.shape[-1])
            largest = max(largest, float((repeated - after).abs().max()))
    return largest
