"""ViT over tubelets with group tokens in joint attention and grouping blocks between layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.data.palettes.frames import PaletteFrames
from svilm_fast.kernels.temporal import segment_pool
from svilm_fast.models import checkpointing
from svilm_fast.models.attention import KeyPadding
from svilm_fast.models.config import VideoConfig
from svilm_fast.models.features import Assignment, VideoFeatures
from svilm_fast.models.grouping_block import GroupingBlock
from svilm_fast.models.noise import drop_path_rates, residual_noise
from svilm_fast.models.precision import at_least_fp32, masked_mean, project, unit_norm
from svilm_fast.models.token_dropping import CONTENT_PATTERNS, TokenSelection, kept_tokens
from svilm_fast.models.token_masking import select_masked
from svilm_fast.models.transformer import Block, BlockOptions, Span
from svilm_fast.models.tubelet_embedding import TubeletEmbedding


@dataclass(frozen=True)
class VideoOutputs:
    """Which outputs a call needs besides the video embedding; the others are not computed."""

    groups: bool = True
    segments: bool = True
    tokens: bool = False
    pixels: bool = False


class LearnedTokens(nn.Module):
    """Learned vectors that join the sequence of every clip.

    A module of its own, because ZeRO 3 gathers a parameter around the forward of its owner.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, width))

    def forward(self, batch: int) -> Tensor:
        """[batch, count, C]."""
        return self.tokens.expand(batch, -1, -1)


class VideoEncoder(nn.Module):
    """Clips to video, segment and group embeddings.

    The sequence is [video tokens, group tokens, class tokens (pool=class_token)]. Group tokens
    attend jointly with the video tokens; a grouping block replaces only the group tokens, so
    the video tokens reach the last layer.
    """

    def __init__(
        self, config: VideoConfig, embed_dim: int, *, attention: str = "auto", groups: bool = True
    ) -> None:
        super().__init__()
        if config.pool == "groups" and not groups:
            raise ValueError("video.pool=groups needs the group tokens in the encoder")
        self.config = config
        self.num_groups = config.num_groups if groups else 0
        width = config.width
        self.embedding = TubeletEmbedding(config)
        if self.num_groups:
            self.groups = LearnedTokens(self.num_groups, width)
            self.grouping_blocks = nn.ModuleDict(
                {
                    str(layer): GroupingBlock(
                        width,
                        config.heads,
                        self.num_groups,
                        mlp_ratio=config.mlp_ratio,
                        mixer_ratio=config.grouping.mixer_ratio,
                        temperature=config.grouping.temperature,
                        backend=attention,
                    )
                    for layer in config.grouping_layers
                }
            )
            self.group_norm = nn.LayerNorm(width)
            self.group_projection = nn.Linear(width, embed_dim)
        if config.pool == "class_token":
            self.class_token = LearnedTokens(config.class_tokens, width)
        if config.pre_norm:
            self.pre_norm = nn.LayerNorm(width, eps=config.norm_eps)
        options = BlockOptions(config.activation, config.norm_eps)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, attention, options)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.projection = nn.Linear(width, embed_dim)

    def forward(
        self,
        frames: Tensor | PaletteFrames,
        seeds: StepSeeds | None = None,
        outputs: VideoOutputs | None = None,
        *,
        shown: VideoConfig | None = None,
        dropping_only: bool = False,
    ) -> VideoFeatures:
        """Embeds clips; without `seeds` nothing is random and no token is dropped or masked.

        Args:
            frames: uint8 [b, F, H, W, 3], or compressed clips of that shape.
            seeds: randomness of the step (keys int64 [b]).
            outputs: what to compute besides the video embedding; groups and segments by default.
            shown: sizes, dropping and masking of small views (`VideoConfig.cropped`).
            dropping_only: keep the tokens that `seeds` keep, and draw nothing else from them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.lock is not True):
            return self._embedded(
                frames, seeds, outputs or VideoOutputs(), shown or self.config, dropping_only
            )

    def _embedded(
        self,
        frames: Tensor | PaletteFrames,
        seeds: StepSeeds | None,
        outputs: VideoOutputs,
        shown: VideoConfig,
        dropping_only: bool,
    ) -> VideoFeatures:
        seen = self._seen(frames, seeds)
        selection = kept_tokens(shown, seeds, batch=len(frames), device=frames.device, frames=seen)
        seeds = None if dropping_only else seeds
        masked = None
        if seeds is not None and shown.mask.rate > 0:
            masked = select_masked(
                seeds.at(Site.TOKEN_MASK), selection, shown.num_tokens, shown.mask.rate
            )
        embedded = _embedded_ids(selection, frames, shown)
        tokens = self.embedding(frames, embedded, masked, shown)
        ids, mask = selection.ids, selection.mask
        extras = self._extra_tokens(len(tokens))
        states = torch.cat([tokens, *extras], dim=1)
        if self.config.pre_norm:
            states = self.pre_norm(states)
        states, assignments = self._layers(states, ids, mask, seeds, outputs, shown.num_tokens)
        sizes = [tokens.shape[1], *(extra.shape[1] for extra in extras)]
        final, *extras = states.split(sizes, dim=1)
        found = self._features(final, extras, ids, mask, assignments, outputs)
        pixels = self.embedding.pixels(frames, embedded, shown) if outputs.pixels else None
        return found._replace(grid=shown.grid, masked=masked, pixels=pixels)

    def _seen(self, frames: Tensor | PaletteFrames, seeds: StepSeeds | None) -> Tensor | None:
        """The frames for patterns that look at pixels; the others need none of them decoded."""
        if isinstance(frames, Tensor):
            return frames
        looks = seeds is not None and self.config.drop.pattern in CONTENT_PATTERNS
        return frames.decoded() if looks else None

    def _extra_tokens(self, batch: int) -> list[Tensor]:
        extras = []
        if self.num_groups:
            extras.append(self.groups(batch))
        if self.config.pool == "class_token":
            extras.append(self.class_token(batch))
        return extras

    def _layers(
        self,
        states: Tensor,
        ids: Tensor,
        mask: Tensor | None,
        seeds: StepSeeds | None,
        outputs: VideoOutputs,
        num_tokens: int,
    ) -> tuple[Tensor, tuple[Assignment, ...]]:
        batch, length, _ = states.shape
        extra = length - ids.shape[1]
        # The noise counters of extra tokens follow those of all video tokens.
        extra_ids = num_tokens + torch.arange(extra, device=ids.device)
        counters = torch.cat([ids, extra_ids.expand(batch, -1)], dim=1)
        padding = token_padding = None
        if mask is not None:
            token_padding = KeyPadding(mask)
            padding = KeyPadding(torch.cat([mask, mask.new_ones(batch, extra)], dim=1))
        rates = drop_path_rates(self.config.drop_path, self.config.depth)
        recompute = self.config.checkpoint_activations and torch.is_grad_enabled()
        assignments = []
        for number, block in enumerate(self.blocks, start=1):
            noise = residual_noise(seeds, number, rates[number - 1], self.config.dropout)
            span = Span(batch, length, counters, padding, noise)
            flat = checkpointing.run(block, states.flatten(0, 1), (span,), recompute=recompute)
            states = flat.unflatten(0, (batch, length))
            if self._groups_after(number, outputs):
                states, assignment = self._regroup(
                    states, number, ids, token_padding, seeds, recompute
                )
                assignments.append(assignment)
        return states, tuple(assignments)

    def _groups_after(self, layer: int, outputs: VideoOutputs) -> bool:
        if not self.num_groups or str(layer) not in self.grouping_blocks:
            return False
        # After the last layer only the group embeddings read the groups.
        read_later = layer < self.config.depth or self.config.pool == "groups"
        return read_later or outputs.groups

    def _regroup(
        self,
        states: Tensor,
        layer: int,
        ids: Tensor,
        padding: KeyPadding | None,
        seeds: StepSeeds | None,
        recompute: bool,
    ) -> tuple[Tensor, Assignment]:
        length = ids.shape[1]
        tokens, groups, rest = states.split(
            [length, self.num_groups, states.shape[1] - length - self.num_groups], dim=1
        )
        mode = self.config.grouping.mode
        if mode == "gumbel" and seeds is None:
            mode = "hard"
        groups, counts, index = checkpointing.run(
            self.grouping_blocks[str(layer)],
            groups,
            tokens,
            mode=mode,
            seeds=None if mode != "gumbel" or seeds is None else seeds.at(Site.GUMBEL, layer),
            token_ids=ids,
            padding=padding,
            recompute=recompute,
        )
        return torch.cat([tokens, groups, rest], dim=1), Assignment(layer, counts, index)

    def _features(
        self,
        tokens: Tensor,
        extras: list[Tensor],
        ids: Tensor,
        mask: Tensor | None,
        assignments: tuple[Assignment, ...],
        outputs: VideoOutputs,
    ) -> VideoFeatures:
        pool = self.config.pool
        if pool == "tokens" or outputs.segments or outputs.tokens:
            tokens = self.norm(tokens)
        grouped = None
        if self.num_groups and (outputs.groups or pool == "groups"):
            grouped = self.group_norm(extras[0])
        if pool == "tokens":
            pooled = masked_mean(tokens, mask)
        elif pool == "groups":
            assert grouped is not None
            pooled = masked_mean(grouped, None)
        else:
            pooled = self.norm(extras[-1])
            # The mean of one token would cast it; today's numbers stay.
            pooled = pooled[:, 0] if pooled.shape[1] == 1 else masked_mean(pooled, None)
        segments = segment_mask = None
        if outputs.segments:
            means, segment_mask = segment_pool(
                tokens, self._segment_of(ids), self.config.num_segments, token_mask=mask
            )
            segments = _scaled(project(self.projection, means), self.config.unit_segments)
        groups = None
        if grouped is not None and outputs.groups:
            groups = _scaled(self.group_projection(grouped), self.config.unit_groups)
        return VideoFeatures(
            video=unit_norm(project(self.projection, pooled)),
            segments=segments,
            segment_mask=segment_mask,
            groups=groups,
            assignments=assignments,
            token_ids=ids,
            token_mask=mask,
            grid=self.config.grid,
            pooled=pooled,
            tokens=at_least_fp32(tokens) if outputs.tokens else None,
        )

    def _segment_of(self, ids: Tensor) -> Tensor:
        time, height, width = self.config.grid
        return ids // (height * width) // (time // self.config.num_segments)


def _scaled(embeddings: Tensor, unit: bool) -> Tensor:
    return unit_norm(embeddings) if unit else at_least_fp32(embeddings)


def _embedded_ids(
    selection: TokenSelection, frames: Tensor | PaletteFrames, config: VideoConfig
) -> Tensor:
    """One row of ids where all tokens stay, so that the embedding does not gather pixels."""
    if selection.ids.shape[1] == config.num_tokens:
        return torch.arange(config.num_tokens, device=frames.device)
    return selection.ids
