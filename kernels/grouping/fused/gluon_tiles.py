"""Device functions of `gluon_forward`: layouts, queries in shared memory, noise, counts."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ...primitives import gumbel_of


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
    """Put the queries into shared memory, in the order of a thread's quads.

    Column 8 a + 2 b + c of a product becomes group (BLOCK_G / 4) b + 2 a + c, so that a thread
    holds neighbouring groups: whole quads, which share a call of the random generator.
    """
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, BLOCK_G, layout=gl.SliceLayout(1, layout))
    group = row % 8 // 2 * (BLOCK_G // 4) + row // 8 * 2 + row % 2
    for part in gl.static_range(SLICES):
        column = part * BLOCK_C + gl.arange(0, BLOCK_C, layout=gl.SliceLayout(0, layout))
        pointers = queries + group[:, None] * WIDTH + column[None, :]
        mask = (group < GROUPS)[:, None] & (column < WIDTH)[None, :]
        query.index(part).store(gl.load(pointers, mask=mask, other=0.0))


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
