"""Device functions of the Gluon kernels: layouts, queries in shared memory, noise, sums."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ...primitives import gumbel_of
from .tiles import quad_order


@gluon.constexpr_function
def rows_layout(columns):
    """[64, columns] with four times as many threads as rows: each holds a row's quarter.

    A thread holds these columns of rows r and r + 8, as in the result of a product.
    """
    held = columns // 4
    within = [[0, 1 << bit] for bit in range(held.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        [*within, [8, 0]],
        [[0, held], [0, 2 * held], [1, 0], [2, 0], [4, 0]],
        [[16, 0], [32, 0]],
        [],
        [64, columns],
    )


@gluon.jit
def store_queries(
    queries,
    query,
    WIDTH: gl.constexpr,
    GROUPS: gl.constexpr,
    BLOCK_C: gl.constexpr,
    BLOCK_G: gl.constexpr,
    SLICES: gl.constexpr,
):
    """Put the queries into shared memory, in the order of `quad_order`."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, BLOCK_G, layout=gl.SliceLayout(1, layout))
    group = quad_order(row, BLOCK_G)
    for part in gl.static_range(SLICES):
        column = part * BLOCK_C + gl.arange(0, BLOCK_C, layout=gl.SliceLayout(0, layout))
        pointers = queries + group[:, None] * WIDTH + column[None, :]
        mask = (group < GROUPS)[:, None] & (column < WIDTH)[None, :]
        query.index(part).store(gl.load(pointers, mask=mask, other=0.0))


@gluon.jit
def bias_of(group_bias, sample, GROUPS: gl.constexpr, BLOCK_G: gl.constexpr):
    """The sample's bias in fp32 in the layout of `rows_layout`, -inf for padding groups."""
    group = gl.arange(0, BLOCK_G, layout=gl.SliceLayout(0, rows_layout(BLOCK_G)))
    bias = gl.where(group < GROUPS, 0.0, float("-inf"))
    if group_bias is not None:
        bias = gl.load(
            group_bias + sample * GROUPS + group, mask=group < GROUPS, other=float("-inf")
        )
        bias = gl.cast(bias, gl.float32)
    return bias


@gluon.jit
def tile_noise(
    seed,
    token_ids,
    sample_start,
    start,
    last,
    GROUPS: gl.constexpr,
    BLOCK_L: gl.constexpr,
    BLOCK_G: gl.constexpr,
):
    """The Gumbel noise of the tokens from `start` on, as `primitives.gumbel`."""
    by_quad: gl.constexpr = rows_layout(BLOCK_G // 4)
    QUADS: gl.constexpr = (GROUPS + 3) // 4
    token = start + gl.arange(0, BLOCK_L, layout=gl.SliceLayout(1, by_quad))
    token_id = token
    if token_ids is not None:
        token_id = gl.load(token_ids + sample_start + token, mask=token < last, other=0)
        token_id = gl.cast(token_id, gl.int32)
    quad = gl.arange(0, BLOCK_G // 4, layout=gl.SliceLayout(0, by_quad))
    noise = gumbel_of(seed, token_id[:, None] * QUADS + quad[None, :])
    return gl.convert_layout(noise, rows_layout(BLOCK_G), assert_trivial=True)


@gluon.jit
def sum_in_threads(values, BLOCK_G: gl.constexpr):
    """The sums [4, 8, BLOCK_G] of the rows that a thread holds."""
    return gl.sum(gl.reshape(values, [4, 2, 8, BLOCK_G]), 1)


@gluon.jit
def in_groups(dots, BLOCK_L: gl.constexpr, BLOCK_G: gl.constexpr):
    """The halves of a product [BLOCK_L, 2 BLOCK_G], columns in the order of groups."""
    halves = gl.reshape(dots, [BLOCK_L, 2, BLOCK_G // 8, 4, 2])
    halves = gl.reshape(gl.permute(halves, (0, 3, 2, 4, 1)), [BLOCK_L, BLOCK_G, 2])
    first, second = gl.split(halves)
    by_group: gl.constexpr = rows_layout(BLOCK_G)
    first = gl.convert_layout(first, by_group, assert_trivial=True)
    return first, gl.convert_layout(second, by_group, assert_trivial=True)


@gluon.jit
def in_columns(values, BLOCK_L: gl.constexpr, BLOCK_G: gl.constexpr):
    """Values [BLOCK_L, BLOCK_G] in the order of groups, in the order of a product's columns."""
    quads = gl.reshape(values, [BLOCK_L, 4, BLOCK_G // 8, 2])
    return gl.reshape(gl.permute(quads, (0, 2, 1, 3)), [BLOCK_L, BLOCK_G])
