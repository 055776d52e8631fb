"""Device functions that the kernels of forward and backward share.

An exponent is a dot product times the slope, beta log2 e, so that p_m is a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from svilm_fast.kernels.primitives import LOG2_E

from .matrix import pair_gradient, scaled

BETA_MAX = tl.constexpr(60.0)
# Similarities are exponents divided by the slope, so it is not 0: a slope of 2^-30 moves a
# probability by less than float32 resolves.
SMALLEST_SLOPE = tl.constexpr(2.0**-30)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_beta(beta):
    """beta in float32, clamped to [0, 60]; NaN stays NaN."""
    value = tl.cast(tl.load(beta), tl.float32)
    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(value, BETA_MAX, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def slope_of(sharpness):
    """The factor from dot products to exponents, from a clamped beta."""
    # p_m ~ exp(beta a_m) = 2^(beta log2 e a_m)
    slope = sharpness * LOG2_E
    return tl.maximum(slope, SMALLEST_SLOPE, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def tile_dots(
    nouns,
    groups,
    first_row,
    first_column,
    total_rows,
    total_columns,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dot products [BLOCK_M, BLOCK_N]; rows and columns past the end repeat the last one."""
    rows = tl.minimum(first_row + tl.arange(0, BLOCK_M), total_rows - 1)
    columns = tl.minimum(first_column + tl.arange(0, BLOCK_N), total_columns - 1)
    depth = tl.arange(0, BLOCK_K)
    noun_at = nouns + rows.to(tl.int64)[:, None] * D + depth[None, :]
    group_at = groups + columns.to(tl.int64)[None, :] * D + depth[:, None]
    dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in tl.range(0, D, BLOCK_K):
        dots = tl.dot(
            tl.load(noun_at + start),
            tl.load(group_at + start),
            dots,
            input_precision=PRECISION,
        )
    return dots


@triton.jit
def group_power(exponent, G: tl.constexpr, PADDED_G: tl.constexpr):
    """2^(x_m - max_m x_m) of exponents [rows, videos, padded G], 0 for padding groups."""
    if PADDED_G > G:
        group = tl.arange(0, PADDED_G)[None, None, :]
        exponent = tl.where(group < G, exponent, float("-inf"))
    return tl.exp2(exponent - tl.max(exponent, 2)[:, :, None])


@triton.jit
def store_scores(
    exponent,
    slope,
    weight,
    scores,
    first_caption,
    first_video,
    captions,
    videos,
    G: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_K: tl.constexpr,
):
    """Scores of the captions of a tile's rows with the videos of its columns, from exponents.

    `exponent` is [rows, columns], `weight` [rows, 1].
    """
    BLOCK_M: tl.constexpr = exponent.shape[0]
    TILE_VIDEOS: tl.constexpr = exponent.shape[1] // PADDED_G
    TILE_CAPTIONS: tl.constexpr = BLOCK_M // PADDED_K
    exponent = tl.reshape(exponent, (BLOCK_M, TILE_VIDEOS, PADDED_G))
    power = group_power(exponent, G, PADDED_G)
    # r_ijk = sum_m p_m a_m
    similarity = tl.sum(power * exponent, 2) / (tl.sum(power, 2) * slope)
    # S_ij = sum_k w_jk r_ijk
    weighted = similarity * weight
    tile = tl.sum(tl.reshape(weighted, (TILE_CAPTIONS, PADDED_K, TILE_VIDEOS)), 1)
    caption = first_caption + tl.arange(0, TILE_CAPTIONS)
    video = first_video + tl.arange(0, TILE_VIDEOS)
    at = scores + video.to(tl.int64)[None, :] * captions + caption[:, None]
    tl.store(at, tile, mask=(video < videos)[None, :] & (caption < captions)[:, None])


@triton.jit
def load_row(weights, lse, row, captions, PADDED_K: tl.constexpr, LOSS: tl.constexpr):
    """Of every row [rows, 1]: its caption, its weight, its caption's log sum, whether it counts.

    A row counts if its caption has a noun; without LOSS, every row of a caption does.
    """
    caption = (row // PADDED_K)[:, None]
    inside = caption < captions
    weight = tl.load(weights + row[:, None], mask=inside, other=0.0)
    column_lse = weight
    if LOSS:
        nouns = caption * PADDED_K + tl.arange(0, PADDED_K)[None, :]
        total = tl.sum(tl.load(weights + nouns, mask=inside, other=0.0), 1)
        column_lse = tl.load(lse + captions + caption, mask=inside, other=0.0)
        inside = inside & (total > 0.0)[:, None]
    return caption, weight, column_lse, inside


@triton.jit
def load_pairs(scores, lse, caption, video, stop_video, captions, LOSS: tl.constexpr):
    """Scores (or their gradient) of every row with every video, and the log sums of the videos."""
    video = video[None, :]
    inside = (caption < captions) & (video < stop_video)
    pair = tl.load(scores + video.to(tl.int64) * captions + caption, mask=inside, other=0.0)
    row_lse = pair
    if LOSS:
        at = tl.broadcast_to(lse + video, inside.shape)
        row_lse = tl.load(at, mask=inside, other=0.0)
    return pair, row_lse


@triton.jit
def pair_upstream(
    pair, row_lse, column_lse, factor, caption, counted, video, stop_video, LOSS: tl.constexpr
):
    """Upstream gradient of the score of every row with every video; with LOSS from the scores."""
    inside = counted & (video < stop_video)[None, :]
    if LOSS:
        pair = pair_gradient(
            scaled(pair, factor), row_lse, column_lse, video[None, :] == caption, inside
        )
    return tl.where(inside, pair, 0.0)


@triton.jit
def dots_gradient(exponent, upstream, G: tl.constexpr, PADDED_G: tl.constexpr):
    """`upstream` p_m (1 + beta (a_m - r)) of a tile, and terms of slope^2 dL/dbeta.

    `exponent` is [rows, columns], `upstream` [rows, videos]. The sum of all terms is
    upstream sum_m p_m (x_m - mean)^2, x the exponents. They are [rows / 16, 8, 8], because one
    thread holds rows r and r + 8 and every eighth column of a tensor-core tile: no shuffle.
    """
    BLOCK_M: tl.constexpr = exponent.shape[0]
    BLOCK_N: tl.constexpr = exponent.shape[1]
    exponent = tl.reshape(exponent, (BLOCK_M, BLOCK_N // PADDED_G, PADDED_G))
    power = group_power(exponent, G, PADDED_G)
    share = 1.0 / tl.sum(power, 2)
    # slope r_ijk = sum_m p_m x_m
    mean = tl.sum(power * exponent, 2) * share
    centred = exponent - mean[:, :, None]
    weighted = power * (upstream * share)[:, :, None]
    moment = weighted * centred
    # dr/dbeta = sum_m p_m a_m^2 - r^2 = sum_m p_m (a_m - r)^2. The second form has no
    # cancellation: the variance of a sharp softmax is close to 0.
    terms = tl.reshape(moment * centred, (BLOCK_M // 16, 2, 8, BLOCK_N // 8, 8))
    # beta (a_m - r) = ln 2 (x_m - mean)
    gradient = weighted + LN_2 * moment
    return tl.reshape(gradient, (BLOCK_M, BLOCK_N)), tl.sum(tl.sum(terms, 3), 1)


@triton.jit
def halves(values):
    """The left and the right half of the columns of a matrix."""
    rows: tl.constexpr = values.shape[0]
    columns: tl.constexpr = values.shape[1]
    return tl.permute(tl.reshape(values, (rows, 2, columns // 2)), (0, 2, 1)).split()
