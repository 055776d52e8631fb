"""What the video encoder returns: named tuples, because ZeRO 3 finds the tensors inside tuples."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Assignment(NamedTuple):
    """Result of one grouping block.

    Attributes:
        layer: the layer that the block follows, counted from 1.
        counts: fp32 [b, G], tokens in each group; no gradient.
        index: int32 [b, L], the group of every token of `VideoFeatures.token_ids`, -1 for padding.
    """

    layer: int
    counts: Tensor
    index: Tensor  # type: ignore[assignment]  # a field may hide tuple.index


class VideoFeatures(NamedTuple):
    """Embeddings of b clips, fp32 (float64 for a float64 model).

    They have unit norm; `video.unit_segments` and `video.unit_groups` switch that off for theirs.

    Attributes:
        video: [b, D].
        segments: [b, T, D], or None where they were not asked for.
        segment_mask: bool [b, T], segments with at least one token.
        groups: [b, G, D] after the last grouping block, or None.
        assignments: one per grouping block that ran.
        token_ids: int64 [b, L], position of every encoded token in the (time, height, width) grid.
        token_mask: bool [b, L], or None where all tokens are real.
        grid: token positions along time, height and width.
        pooled: [b, C], what `video` is the projection of.
        tokens: [b, L, C], normalised states of the video tokens after the last layer, at least
            fp32; None where they were not asked for.
        masked: bool [b, L], tokens whose pixels the encoder did not see; None without masking.
        pixels: fp32 [b, L, tubelet * patch^2 * 3], the tokens' pixels, each tubelet shifted and
            scaled to mean 0 and deviation 1; None where they were not asked for.
    """

    video: Tensor
    segments: Tensor | None
    segment_mask: Tensor | None
    groups: Tensor | None
    assignments: tuple[Assignment, ...]
    token_ids: Tensor
    token_mask: Tensor | None
    grid: tuple[int, int, int]
    pooled: Tensor
    tokens: Tensor | None = None
    masked: Tensor | None = None
    pixels: Tensor | None = None
