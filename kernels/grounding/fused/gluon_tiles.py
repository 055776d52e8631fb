"""The gradient of a tile of dot products in Gluon, and the layouts of its parts."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .tiles import LN_2


@gluon.constexpr_function
def tile_layout(videos, groups):
    """Layout [64 rows, videos, groups] of the products of a warp group, for sums over groups."""

    def column(number):
        return [0, number // groups, number % groups]

    beyond = [column(8 << bit) for bit in range((videos * groups // 8).bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[column(1), [8, 0, 0], *beyond],
        lane_bases=[column(2), column(4), [1, 0, 0], [2, 0, 0], [4, 0, 0]],
        warp_bases=[[16, 0, 0], [32, 0, 0]],
        block_bases=[],
        shape=[64, videos, groups],
    )


@gluon.constexpr_function
def term_layout():
    """Layout [4, 8, 8] of the terms of beta's gradient: two per thread."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 1]],
        lane_bases=[[0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        warp_bases=[[1, 0, 0], [2, 0, 0]],
        block_bases=[],
        shape=[4, 8, 8],
    )


@gluon.jit
def tile_gradient(
    dots, slope, upstream, G: gl.constexpr, PADDED_G: gl.constexpr, LAYOUT: gl.constexpr
):
    """`upstream` p_m (1 + beta (a_m - r)) of a tile, and `upstream` p_m (x_m - mean)^2.

    As `tiles.dots_gradient`, but with exponents x relative to the largest of their softmax.
    """
    VIDEOS: gl.constexpr = dots.shape[1] // PADDED_G
    products = gl.reshape(dots, [dots.shape[0], VIDEOS, PADDED_G])
    products = gl.convert_layout(products, LAYOUT, assert_trivial=True)
    if PADDED_G > G:
        group = gl.arange(0, PADDED_G, layout=gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))
        # Its power is 0; infinity times 0 would not be.
        products = gl.where((group < G)[None, None, :], products, -1e30)
    shift = gl.max(products, 2) * -slope
    exponent = gl.fma(products, slope, shift[:, :, None])
    power = gl.exp2(exponent)
    share = 1.0 / gl.sum(power, 2)
    mean = gl.sum(power * exponent, 2) * share
    centred = exponent - mean[:, :, None]
    weighted = power * (upstream * share)[:, :, None]
    moment = weighted * centred
    # beta (a_m - r) = ln 2 (x_m - mean)
    gradient = weighted + LN_2 * moment
    return gl.reshape(gradient, [dots.shape[0], dots.shape[1]]), moment * centred


@gluon.jit
def sum_in_threads(moments):
    """The terms of beta's gradient summed to [rows / 16, 8, 8] without shuffles.

    A thread holds rows r and r + 8 and every eighth column of a tensor-core tile.
    """
    ROWS: gl.constexpr = moments.shape[0]
    BLOCK_N: gl.constexpr = moments.shape[1] * moments.shape[2]
    parts = gl.reshape(moments, [ROWS // 16, 2, 8, BLOCK_N // 8, 8])
    return gl.convert_layout(gl.sum(gl.sum(parts, 3), 1), term_layout(), assert_trivial=True)
