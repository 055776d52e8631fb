"""The sums of tiles beside the diagonal on sm_90, in Gluon, with roles for the warps.

One warp copies (TMA). Two warp groups multiply and sum in turn: while one takes powers and sums,
the other has the tensor cores. The tile of texts stays in shared memory for a whole strip. The
results are those of `forward.sums_kernel` with TILES = "beside".
"""

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ...launch import launch
from ...primitives import LOG2_E
from .gluon_ring import (
    COPY_REGISTERS,
    DEPTH,
    MEAN_REGISTERS,
    PRODUCT_REGISTERS,
    blocks,
    ring_product,
    rows_at_once,
)
from .layout import InfonceTile
from .tiles import OFFSET

STAGES = 8


@gluon.jit
def copy_partition(
    operands,
    buffers,
    barriers,
    places,
    BLOCK_M: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Copy the tile of texts once, and the videos of every product through the ring."""
    videos, texts = operands
    text_tile, ring, _ = buffers
    text_filled, filled, freed, _, _ = barriers
    first_column, start_row, products = places
    for product in range(products):
        for step in gl.static_range(STEPS):
            # The first product starts as soon as the first slice of the texts has arrived.
            mbarrier.expect(text_filled.index(step), texts.block_type.nbytes, pred=product == 0)
            tma.async_copy_global_to_shared(
                texts,
                [first_column, step * BLOCK_K],
                text_filled.index(step),
                text_tile.index(step),
                pred=product == 0,
            )
            copy = product * STEPS + step
            stage = copy % STAGES
            # Stages count as freed before their first use: the phase before the first is complete.
            mbarrier.wait(freed.index(stage), (copy // STAGES & 1) ^ 1)
            mbarrier.expect(filled.index(stage), videos.block_type.nbytes)
            tma.async_copy_global_to_shared(
                videos,
                [start_row + product * BLOCK_M, step * BLOCK_K],
                filled.index(stage),
                ring.index(stage),
            )


@gluon.jit
def sum_partition(
    call,
    GROUP: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Multiply and sum every second product, from number GROUP on."""
    buffers, barriers, places, bounds, powers, targets = call
    text_tile, ring, shared_sum = buffers
    text_filled, filled, freed, turns, summed = barriers
    first_column, start_row, products = places
    stop_row, first_beside, stop_beside = bounds
    slope, base = powers
    row_sums, column_sums = targets
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    # A thread holds rows r and r + 8 of its warp's 16 of every 64, so their sum needs no shuffle.
    column_sum = sum_in_threads(
        gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=layout), BLOCK_M, BLOCK_N
    )
    for product in range(GROUP, products, 2):
        dots = ring_product(
            (text_tile, ring),
            (text_filled, filled, freed, turns),
            product,
            product == GROUP,
            0,
            layout,
            GROUP,
            BLOCK_M,
            BLOCK_N,
            STEPS,
            STAGES,
        )
        row = (
            start_row + product * BLOCK_M + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, layout))
        )
        counted = (row < stop_row) & ((row < first_beside) | (row >= stop_beside))
        row_base = gl.where(counted, base, float("-inf"))
        # e_ij = 2^(k a_ij - k + OFFSET), as in `forward.sums_kernel`
        power = gl.exp2(gl.fma(dots, slope, row_base[:, None]))
        gl.store(row_sums + row, gl.sum(power, 1), mask=counted)
        column_sum += sum_in_threads(power, BLOCK_M, BLOCK_N)

    flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    total = gl.convert_layout(gl.sum(gl.sum(column_sum, 1), 0), flat)
    if GROUP == 1:
        shared_sum.store(total)
        mbarrier.arrive(summed, count=1)
    else:
        mbarrier.wait(summed, 0)
        total += shared_sum.load(flat)
        gl.store(column_sums + first_column + gl.arange(0, BLOCK_N, layout=flat), total)


@gluon.jit
def sum_in_threads(power, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """The sums [4, 8, BLOCK_N] of the rows that a thread holds."""
    parts = gl.reshape(power, [BLOCK_M // 64, 4, 2, 8, BLOCK_N])
    return gl.sum(gl.sum(parts, 2), 0)


@gluon.jit(
    do_not_specialize=[
        "first_row",
        "stop_row",
        "columns",
        "first_tile",
        "offset",
        "strips",
        "strip",
    ]
)
def gluon_sums_kernel(
    videos,
    texts,
    scale,
    row_sums,
    column_sums,
    first_row,
    stop_row,
    columns,
    first_tile,
    offset,
    strips,
    strip,
    TILE_M: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS_TO_SUM: gl.constexpr,
    REGISTERS_TO_COPY: gl.constexpr,
):
    """Partial sums of a whole column tile with `strip` row tiles of TILE_M, none of them diagonal.

    `videos` and `texts` are descriptors of blocks [BLOCK_M, BLOCK_K] and [BLOCK_N, BLOCK_K]; STEPS
    blocks cover D.
    """
    BLOCK_M: gl.constexpr = videos.block_type.shape[0]
    BLOCK_N: gl.constexpr = texts.block_type.shape[0]
    BLOCK_K: gl.constexpr = texts.block_type.shape[1]
    pid = gl.program_id(0)
    column_tile = first_tile + pid // strips
    number = pid % strips
    first_column = column_tile * BLOCK_N
    start_row = first_row + number * strip * TILE_M
    rows = gl.minimum(strip * TILE_M, stop_row - start_row)
    # The row tiles that meet the diagonal.
    first = gl.maximum(first_column - offset, first_row) - first_row
    stop = gl.minimum(first_column + BLOCK_N - offset, stop_row) - first_row
    first_beside = first_row + first // TILE_M * TILE_M
    stop_beside = gl.where(first < stop, first_row + gl.cdiv(stop, TILE_M) * TILE_M, first_beside)
    slope = gl.cast(gl.load(scale), gl.float32) * LOG2_E

    text_tile = gl.allocate_shared_memory(texts.dtype, [STEPS, BLOCK_N, BLOCK_K], texts.layout)
    ring = gl.allocate_shared_memory(videos.dtype, [STAGES, BLOCK_M, BLOCK_K], videos.layout)
    shared_sum = gl.allocate_shared_memory(
        gl.float32, [BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    text_filled = gl.allocate_shared_memory(gl.int64, [STEPS, 1], barrier)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    freed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    summed = gl.allocate_shared_memory(gl.int64, [1], barrier)
    for step in gl.static_range(STEPS):
        mbarrier.init(text_filled.index(step), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(freed.index(stage), count=1)
    for group in gl.static_range(2):
        mbarrier.init(turns.index(group), count=1)
    mbarrier.init(summed, count=1)

    buffers = (text_tile, ring, shared_sum)
    barriers = (text_filled, filled, freed, turns, summed)
    places = (first_column, start_row, gl.cdiv(rows, BLOCK_M))
    bounds = (stop_row, first_beside, stop_beside)
    powers = (slope, -slope + OFFSET)
    targets = (
        row_sums + gl.cast(column_tile, gl.int64) * (stop_row - first_row) - first_row,
        column_sums + gl.cast(number, gl.int64) * columns,
    )
    call = (buffers, barriers, places, bounds, powers, targets)
    gl.warp_specialize(
        [
            (sum_partition, (call, 0, BLOCK_M, BLOCK_N, STEPS, STAGES)),
            (sum_partition, (call, 1, BLOCK_M, BLOCK_N, STEPS, STAGES)),
            (
                copy_partition,
                ((videos, texts), buffers, barriers, places, BLOCK_M, BLOCK_K, STEPS, STAGES),
            ),
        ],
        [4, 1],
        [REGISTERS_TO_SUM, REGISTERS_TO_COPY],
    )


def launch_sums(
    videos: Tensor,
    texts: Tensor,
    scale: Tensor,
    sums: tuple[Tensor, Tensor],
    tile: InfonceTile,
    rows: tuple[int, int],
    first_tile: int,
    column_tiles: int,
    offset: int,
    strips: int,
    strip: int,
) -> None:
    """Write the partial row and column sums `sums` of rows [start, stop) and whole column tiles.

    Only tiles beside the diagonal are counted. `strips` strips of `strip` tiles cover the rows.
    """
    dim = videos.shape[1]
    launch(
        gluon_sums_kernel,
        (column_tiles * strips,),
        blocks(videos, rows_at_once(dim), DEPTH),
        blocks(texts, tile.columns, DEPTH),
        scale,
        *sums,
        *rows,
        texts.shape[0],
        first_tile,
        offset,
        strips,
        strip,
        TILE_M=tile.rows,
        STEPS=-(-dim // DEPTH),
        STAGES=STAGES,
        REGISTERS_TO_SUM=PRODUCT_REGISTERS,
        REGISTERS_TO_COPY=COPY_REGISTERS,
        num_warps=4,
        maxnreg=MEAN_REGISTERS,
    )
