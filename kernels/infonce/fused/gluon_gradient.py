"""The gradient of the dot products on sm_90, in Gluon, with roles for the warps.

One warp copies (TMA). Two warp groups multiply and compute the gradient in turn: while one takes
powers and stores, the other has the tensor cores. A program takes consecutive products of a chunk,
column tile by column tile, so the tile of texts stays in shared memory over all rows of the chunk.
The results are those of `gradient.dots_gradient_kernel` without pair ids.
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from ...device import traits
from ...launch import launch
from ...primitives import LOG2_E
from .gluon_ring import (
    COPY_REGISTERS,
    DEPTH,
    MEAN_REGISTERS,
    PRODUCT_REGISTERS,
    blocks,
    ring_product,
)
from .layout import LINES
from .tiles import OFFSET

# A product of more rows would need more registers than a thread has.
BLOCK_M = 64
BLOCK_N = 128
# With eight, a thread spills where upstream gradients are given.
STAGES = 7
# With fewer products per program, its two groups would not pay for a tile of texts.
LEAST_PRODUCTS = 4


@gluon.jit
def copy_partition(
    operands,
    buffers,
    barriers,
    places,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy each tile of texts once, and the videos of every product through the ring."""
    videos, texts = operands
    text_tile, ring = buffers
    text_filled, filled, freed, _ = barriers
    first, products, row_products, first_row = places
    for product in range(products):
        column_tile = (first + product) // row_products
        row_start = first_row + (first + product) % row_products * BLOCK_M
        new_texts = (product == 0) | ((first + product) % row_products == 0)
        for step in gl.static_range(STEPS):
            copy = product * STEPS + step
            stage = copy % STAGES
            # Stages count as freed before their first use: the phase before the first is complete.
            mbarrier.wait(freed.index(stage), (copy // STAGES & 1) ^ 1)
            # The last two products, one of each group, have read this slice of the old texts. The
            # ring already waited for what it copied STAGES steps ago.
            if STAGES > STEPS:
                read = copy + STAGES - STEPS
                mbarrier.wait(
                    freed.index(read % STAGES),
                    (read // STAGES & 1) ^ 1,
                    pred=new_texts & (product > 0),
                )
            if STAGES > 2 * STEPS:
                read = copy + STAGES - 2 * STEPS
                mbarrier.wait(
                    freed.index(read % STAGES),
                    (read // STAGES & 1) ^ 1,
                    pred=new_texts & (product > 1),
                )
            mbarrier.expect(text_filled.index(step), texts.block_type.nbytes, pred=new_texts)
            tma.async_copy_global_to_shared(
                texts,
                [column_tile * BLOCK_N, step * BLOCK_K],
                text_filled.index(step),
                text_tile.index(step),
                pred=new_texts,
            )
            mbarrier.expect(filled.index(stage), videos.block_type.nbytes)
            tma.async_copy_global_to_shared(
                videos, [row_start, step * BLOCK_K], filled.index(stage), ring.index(stage)
            )


@gluon.jit
def gradient_partition(
    call,
    out,
    store_buffer,
    GROUP: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    LINES: gl.constexpr,
    LOSS: gl.constexpr,
):
    """Compute and store the gradient of every second product, from number GROUP on."""
    buffers, barriers, places, sizes, powers, lines = call
    first, products, row_products, first_row = places
    rows, columns, offset, row_blocks = sizes
    slope, lift = powers
    logs, factors, sound, line_upstream = lines
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    row_in_tile = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, layout))
    column_in_tile = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, layout))
    for product in range(GROUP, products, 2):
        column_tile = (first + product) // row_products
        row_product = (first + product) % row_products
        first_line = first_row + row_product * BLOCK_M
        column_line = row_blocks * LINES + column_tile * BLOCK_N
        # All loads of the main path are under way before the product.
        row_factor = gl.load(factors + first_line + row_in_tile)
        column_factor = gl.load(factors + column_line + column_in_tile)
        is_sound = gl.load(sound + first_line // LINES)
        for block in gl.static_range(1, BLOCK_M // LINES):
            is_sound = gl.minimum(is_sound, gl.load(sound + first_line // LINES + block))
        for block in gl.static_range(BLOCK_N // LINES):
            is_sound = gl.minimum(is_sound, gl.load(sound + column_line // LINES + block))

        dots = ring_product(
            buffers,
            barriers,
            product,
            (product == GROUP) | (row_product < 2),
            (column_tile - first // row_products) & 1,
            layout,
            GROUP,
            BLOCK_M,
            BLOCK_N,
            STEPS,
            STAGES,
        )
        if is_sound != 0:
            power = gl.exp2(gl.fma(dots, slope, -slope + OFFSET))
            # e_ij (g^r_i / exp(r_i) + g^c_j / exp(c_j)), as in `gradient.dots_gradient_kernel`
            gradient = power * ((row_factor * lift)[:, None] + (column_factor * lift)[None, :])
        else:
            row_log = usable_log(gl.load(logs + first_line + row_in_tile))
            column_log = usable_log(gl.load(logs + column_line + column_in_tile))
            exponent = gl.fma(dots, slope, -slope)
            # dS_ij = g^r_i exp(s_ij - r_i) + g^c_j exp(s_ij - c_j)
            if LOSS:
                # g is 1 for lines with a positive, else 0.
                row = first_line + row_in_tile
                column = column_tile * BLOCK_N + column_in_tile
                row_log = gl.where(has_pair(row, offset, rows, columns), row_log, float("inf"))
                column_log = gl.where(
                    has_pair(column, -offset, columns, rows), column_log, float("inf")
                )
                gradient = gl.exp2(exponent - row_log[:, None])
                gradient += gl.exp2(exponent - column_log[None, :])
            else:
                row_upstream = gl.load(line_upstream + first_line + row_in_tile)
                column_upstream = gl.load(line_upstream + column_line + column_in_tile)
                gradient = gl.exp2(exponent - row_log[:, None]) * row_upstream[:, None]
                gradient += gl.exp2(exponent - column_log[None, :]) * column_upstream[None, :]
            gradient = lift * gradient
        half = gl.cast(gradient, gl.float16)
        # The store of the group's last product has read the buffer.
        tma.store_wait(0)
        store_buffer.store(half)
        fence_async_shared()
        tma.async_copy_shared_to_global(
            out, [row_product * BLOCK_M, column_tile * BLOCK_N], store_buffer
        )
    tma.store_wait(0)


@gluon.jit
def usable_log(log):
    """Infinity instead of -infinity: a line without a sum gets no gradient."""
    return gl.where(log == float("-inf"), float("inf"), log)


@gluon.jit
def has_pair(line, shift, count, other_count):
    """Whether a line has a positive in the block."""
    partner = line + shift
    return (line < count) & (partner >= 0) & (partner < other_count)


@gluon.jit(do_not_specialize=["first_row", "stop_row", "rows", "columns", "offset", "row_blocks"])
def gluon_gradient_kernel(
    videos,
    texts,
    scale,
    logs,
    factors,
    sound,
    line_upstream,
    out,
    first_row,
    stop_row,
    rows,
    columns,
    offset,
    row_blocks,
    lift,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    LINES: gl.constexpr,
    LOSS: gl.constexpr,
    REGISTERS_TO_COMPUTE: gl.constexpr,
    REGISTERS_TO_COPY: gl.constexpr,
):
    """`lift` x the gradient of the dot products, without the common factor of upstream.

    `videos`, `texts` and `out` are descriptors of blocks [BLOCK_M, BLOCK_K], [BLOCK_N, BLOCK_K] and
    [BLOCK_M, BLOCK_N]; STEPS blocks cover D. `diagonal_kernel` overwrites the positives afterwards.
    """
    BLOCK_M: gl.constexpr = videos.block_type.shape[0]
    BLOCK_N: gl.constexpr = texts.block_type.shape[0]
    BLOCK_K: gl.constexpr = texts.block_type.shape[1]
    row_products = gl.cdiv(stop_row - first_row, BLOCK_M)
    total = row_products * gl.cdiv(columns, BLOCK_N)
    first = gl.program_id(0) * total // gl.num_programs(0)
    products = (gl.program_id(0) + 1) * total // gl.num_programs(0) - first
    slope = gl.cast(gl.load(scale), gl.float32) * LOG2_E

    text_tile = gl.allocate_shared_memory(texts.dtype, [STEPS, BLOCK_N, BLOCK_K], texts.layout)
    ring = gl.allocate_shared_memory(videos.dtype, [STAGES, BLOCK_M, BLOCK_K], videos.layout)
    store_buffers = gl.allocate_shared_memory(out.dtype, [2, BLOCK_M, BLOCK_N], out.layout)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    text_filled = gl.allocate_shared_memory(gl.int64, [STEPS, 1], barrier)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    freed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    for step in gl.static_range(STEPS):
        mbarrier.init(text_filled.index(step), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(freed.index(stage), count=1)
    for group in gl.static_range(2):
        mbarrier.init(turns.index(group), count=1)

    buffers = (text_tile, ring)
    barriers = (text_filled, filled, freed, turns)
    places = (first, products, row_products, first_row)
    sizes = (rows, columns, offset, row_blocks)
    lines = (logs, factors, sound, line_upstream)
    call = (buffers, barriers, places, sizes, (slope, lift), lines)
    gl.warp_specialize(
        [
            (
                gradient_partition,
                (
                    call,
                    out,
                    store_buffers.index(0),
                    0,
                    BLOCK_M,
                    BLOCK_N,
                    STEPS,
                    STAGES,
                    LINES,
                    LOSS,
                ),
            ),
            (
                gradient_partition,
                (
                    call,
                    out,
                    store_buffers.index(1),
                    1,
                    BLOCK_M,
                    BLOCK_N,
                    STEPS,
                    STAGES,
                    LINES,
                    LOSS,
                ),
            ),
            (
                copy_partition,
                (
                    (videos, texts),
                    buffers,
                    barriers,
                    places,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_K,
                    STEPS,
                    STAGES,
                ),
            ),
        ],
        [4, 1],
        [REGISTERS_TO_COMPUTE, REGISTERS_TO_COPY],
    )


def launch_gradient(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor,
    lines: tuple[Tensor, Tensor, Tensor, Tensor | None],
    out: Tensor,
    sizes: tuple[int, ...],
    lift: float,
) -> None:
    """Write rows [start, stop) of the gradient of the dot products, times `lift`, to `out`.

    `lines` are the logarithms, factors and flags of `forward.Logs` and the upstream gradients of
    the lines, None for those of the loss. `out` is float16 with at least stop - start rows. `sizes`
    are start, stop, rows, columns, diagonal offset, and the blocks of row lines.
    """
    start, stop, _, columns, *_ = sizes
    dim = videos.shape[1]
    programs = min(_products(stop - start, columns), traits(videos.device).sm_count)
    launch(
        gluon_gradient_kernel,
        (programs,),
        blocks(videos, BLOCK_M, DEPTH),
        blocks(texts, BLOCK_N, DEPTH),
        scale,
        *lines,
        blocks(out, BLOCK_M, BLOCK_N),
        *sizes,
        lift,
        STEPS=-(-dim // DEPTH),
        STAGES=STAGES,
        LINES=LINES,
        LOSS=lines[3] is None,
        REGISTERS_TO_COMPUTE=PRODUCT_REGISTERS,
        REGISTERS_TO_COPY=COPY_REGISTERS,
        num_warps=4,
        maxnreg=MEAN_REGISTERS,
    )


def fills_programs(videos: Tensor, texts: Tensor, rows: int) -> bool:
    """Whether a chunk of rows has LEAST_PRODUCTS products for every SM."""
    products = _products(rows, texts.shape[0])
    return products >= LEAST_PRODUCTS * traits(videos.device).sm_count


def _products(rows: int, columns: int) -> int:
    return -(-rows // BLOCK_M) * -(-columns // BLOCK_N)
