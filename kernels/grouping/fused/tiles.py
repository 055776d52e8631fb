"""Device functions that forward and backward share: loads, noise, softmax, stores."""
# Triton does not support unpacking, so its tuples grow by addition in unrolled loops.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from ...primitives import gumbel


@triton.jit
def _token_block(
    start,
    rows,
    block,
    WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Offsets of one [BLOCK_L, BLOCK_C] block of a sample's tokens, and its mask."""
    row = tl.arange(0, BLOCK_L)
    column = block * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = rows[:, None]
    if WIDTH % BLOCK_C != 0:
        mask = mask & (column < WIDTH)[None, :]
    offsets = tl.cast(start, tl.int64) * WIDTH + (row[:, None] * WIDTH + column[None, :])
    return offsets, mask


@triton.jit
def load_token_block(
    tokens,
    start,
    present,
    block,
    WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Columns `block` of the sample's tokens [start, start + BLOCK_L), 0 where not `present`.

    A masked token may hold NaN, which a product with 0 would not clear.
    """
    offsets, mask = _token_block(start, present, block, WIDTH, BLOCK_L, BLOCK_C)
    return tl.load(tokens + offsets, mask=mask, other=0.0)


@triton.jit
def store_token_block(
    tokens,
    values,
    start,
    last,
    block,
    WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write columns `block` of the sample's tokens [start, start + BLOCK_L)."""
    rows = start + tl.arange(0, BLOCK_L) < last
    offsets, mask = _token_block(start, rows, block, WIDTH, BLOCK_L, BLOCK_C)
    tl.store(tokens + offsets, values.to(tokens.dtype.element_ty), mask=mask)


@triton.jit
def load_tokens(
    tokens,
    start,
    present,
    first_block,
    WIDTH: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    """NUM_BLOCKS column blocks of the sample's tokens [start, start + BLOCK_L), as a tuple."""
    blocks = ()
    for block in tl.static_range(NUM_BLOCKS):
        tile = load_token_block(
            tokens, start, present, first_block + block, WIDTH, BLOCK_L, BLOCK_C
        )
        blocks = blocks + (tile,)
    return blocks


@triton.jit
def pack(tiles):
    """16-bit tiles as pairs of columns in 32-bit words.

    Over a loop, the compiler keeps each half in a register of its own.
    """
    packed = ()
    for i in tl.static_range(len(tiles)):
        packed = packed + (_pack(tiles[i]),)
    return packed


@triton.jit
def unpack(tiles, dtype: tl.constexpr):
    """The tiles that `pack` packed."""
    unpacked = ()
    for i in tl.static_range(len(tiles)):
        unpacked = unpacked + (_unpack(tiles[i], dtype),)
    return unpacked


@triton.jit
def _pack(tile):
    if tile.dtype.primitive_bitwidth == 16:
        bits = tile.to(tl.uint16, bitcast=True)
        low, high = tl.split(tl.reshape(bits, (tile.shape[0], tile.shape[1] // 2, 2)))
        tile = low.to(tl.uint32) | (high.to(tl.uint32) << 16)
    return tile


@triton.jit
def _unpack(tile, dtype: tl.constexpr):
    if dtype.primitive_bitwidth == 16:
        pairs = tl.join((tile & 0xFFFF).to(tl.uint16), (tile >> 16).to(tl.uint16))
        bits = tl.reshape(pairs, (tile.shape[0], tile.shape[1] * 2))
        tile = bits.to(dtype, bitcast=True)
    return tile


@triton.jit
def load_group_block(
    rows,
    block,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Block `block` of one sample's [G, C] rows, transposed to [BLOCK_C, BLOCK_G]."""
    column = block * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.arange(0, BLOCK_G)
    mask = (column < WIDTH)[:, None] & (group < GROUPS)[None, :]
    return tl.load(rows + column[:, None] + group[None, :] * WIDTH, mask=mask, other=0.0)


@triton.jit
def load_group_blocks(
    rows,
    first_block,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    """NUM_BLOCKS blocks of one sample's [G, C] rows, as a tuple of [BLOCK_C, BLOCK_G]."""
    blocks = ()
    for block in tl.static_range(NUM_BLOCKS):
        tile = load_group_block(rows, first_block + block, WIDTH, GROUPS, BLOCK_C, BLOCK_G)
        blocks = blocks + (tile,)
    return blocks


@triton.jit
def load_bias(group_bias, sample, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr):
    """The sample's bias in fp32, -inf for padding groups."""
    group = tl.arange(0, BLOCK_G)
    if group_bias is None:
        bias = tl.where(group < GROUPS, 0.0, float("-inf"))
    else:
        pointers = group_bias + sample * GROUPS + group
        bias = tl.load(pointers, mask=group < GROUPS, other=float("-inf")).to(tl.float32)
    return bias


@triton.jit
def add_noise(
    logits,
    start,
    last,
    seed,
    token_ids,
    sample,
    length,
    GROUPS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Logits of the tokens from `start` on, plus their Gumbel noise."""
    token = start + tl.arange(0, BLOCK_L)
    if token_ids is None:
        token_id = token
    else:
        pointers = token_ids + sample * length + token
        token_id = tl.load(pointers, mask=token < last, other=0).to(tl.int32)
    return logits + gumbel(seed, token_id, GROUPS, BLOCK_G)


@triton.jit
def quad_order(position, BLOCK_G: tl.constexpr):
    """The group of a product's column `position` in the Gluon kernels.

    Column 8 a + 2 b + c is group (BLOCK_G / 4) b + 2 a + c, so that a thread of a product holds
    neighbouring groups: whole quads, which share a call of the random generator.
    """
    return position % 8 // 2 * (BLOCK_G // 4) + position // 8 * 2 + position % 2


@triton.jit
def load_present(token_mask, start, last, sample, length, BLOCK_L: tl.constexpr):
    """Which of the tokens from `start` on exist and are not masked out."""
    token = start + tl.arange(0, BLOCK_L)
    present = token < last
    if token_mask is not None:
        kept = tl.load(token_mask + sample * length + token, mask=present, other=0)
        present = present & (kept != 0)
    return present


@triton.jit
def group_softmax(logits, inverse_temperature):
    """Softmax over the last axis in fp32; at least one logit per row is finite."""
    shifted = (logits - tl.max(logits, axis=1)[:, None]) * inverse_temperature
    # soft_lg = exp(logit_lg / tau) / sum_g exp(logit_lg / tau)
    weight = tl.exp(shifted)
    return weight / tl.sum(weight, axis=1)[:, None]


@triton.jit
def store_group_block(
    rows,
    values,
    block,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Write [BLOCK_C, BLOCK_G] into block `block` of one sample's [G, C] rows."""
    column = block * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.arange(0, BLOCK_G)
    # Does not share the offsets of load_group_block: the compiler would keep them in registers
    # over the main loop.
    mask = (group < GROUPS)[:, None] & (column < WIDTH)[None, :]
    pointers = rows + group[:, None] * WIDTH + column[None, :]
    tl.store(pointers, tl.trans(values).to(rows.dtype.element_ty), mask=mask)


@triton.jit
def sum_splits(
    partial,
    sample,
    column,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Sum of one sample's partial [G, columns] over its splits, in a fixed order."""
    group = tl.arange(0, BLOCK_G)
    mask = (group < GROUPS)[:, None] & (column < WIDTH)[None, :]
    inside = group[:, None] * WIDTH + column[None, :]
    base = partial + sample * SPLITS * GROUPS * WIDTH
    total = tl.load(base + inside, mask=mask, other=0.0)
    for split in range(1, SPLITS):
        total += tl.load(base + split * GROUPS * WIDTH + inside, mask=mask, other=0.0)
    return total


@triton.jit
def sum_split_numbers(
    partial, sample, SPLITS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr
):
    """Sum of one sample's partial [G] over its splits, in a fixed order."""
    zero = tl.zeros((1,), tl.int32)
    return tl.sum(sum_splits(partial, sample, zero, SPLITS, 1, GROUPS, BLOCK_G), axis=1)


@triton.jit
def store_columns(
    rows,
    values,
    sample,
    column,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Write [BLOCK_G, columns] into one sample's [G, C] rows."""
    group = tl.arange(0, BLOCK_G)
    mask = (group < GROUPS)[:, None] & (column < WIDTH)[None, :]
    pointers = rows + (sample * GROUPS + group[:, None]) * WIDTH + column[None, :]
    tl.store(pointers, values.to(rows.dtype.element_ty), mask=mask)
