"""Kernels that measure single properties of a GPU: clock, tensor cores, L2, latencies.

Each program writes a line of MARKS numbers. `%clock64` counts clocks of an SM, `%globaltimer`
nanoseconds of the GPU (in steps of up to a microsecond, so that loops must be long).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import globaltimer, smid

from svilm_fast.kernels.launch import launch

# Columns of the marks: clocks at the first instruction, before and after the measured loop, and
# after the last result; nanoseconds before and after the loop; the SM.
BEGIN, START, END, LAST, START_NS, END_NS, SM = range(7)
MARKS = 7
# The tile of the product, whose 128 sums per thread let one block run on an SM.
TILE_M, TILE_N, TILE_K = 128, 256, 128
# Products of a step: only at its start all warps wait for each other.
REPEATS = 4
FLOPS = 2.0 * TILE_M * TILE_N * TILE_K * REPEATS
# 32-bit words that a program of `stream_kernel` reads at once: 16 bytes per thread, four times.
STREAM_WORDS = 4096
STREAM_BLOCKS_PER_SM = 4
LINE_WORDS = 32
COPY_ROWS, COPY_COLUMNS = 64, 64


@triton.jit
def clock():
    """Clocks of this SM."""
    return tl.inline_asm_elementwise(
        "mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit
def _mark(marks, begin, start, end, start_ns, end_ns, COUNT: tl.constexpr):
    line = marks + tl.program_id(0) * COUNT
    last = clock()
    tl.store(line, begin)
    tl.store(line + 1, start)
    tl.store(line + 2, end)
    tl.store(line + 3, last)
    tl.store(line + 4, start_ns)
    tl.store(line + 5, end_ns)
    tl.store(line + 6, smid().to(tl.int64))


@triton.jit
def products_kernel(
    left, right, sums, marks, steps,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, REPEATS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """`steps` times REPEATS products [M, K] x [K, N] of operands that stay in shared memory."""
    begin = clock()
    depth = tl.arange(0, K)
    a = tl.load(left + tl.arange(0, M)[:, None] * K + depth)
    b = tl.load(right + tl.arange(0, N)[:, None] * K + depth)
    total = tl.zeros((M, N), tl.float32)
    start_ns = globaltimer()
    start = clock()
    for _ in range(steps):
        for _ in tl.static_range(REPEATS):
            total = tl.dot(a, b.T, total)
    end = clock()
    end_ns = globaltimer()
    tl.store(sums + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))
    _mark(marks, begin, start, end, start_ns, end_ns, COUNT)


@triton.jit
def stream_kernel(data, sums, tiles, rounds, WORDS: tl.constexpr):
    """Read `rounds` tiles of WORDS 32-bit words past L1, one after another and in a circle."""
    pid = tl.program_id(0)
    # Programs that start together begin far apart.
    tile = (pid * 37) % tiles
    word = tl.arange(0, WORDS)
    total = tl.zeros((WORDS,), tl.int32)
    for _ in range(rounds):
        total += tl.load(data + tile * WORDS + word, cache_modifier=".cg")
        tile += 1
        tile = tl.where(tile == tiles, 0, tile)
    tl.store(sums + pid, tl.sum(total, 0))


@triton.jit
def chase_kernel(chain, ends, marks, lines, steps, WORDS: tl.constexpr, COUNT: tl.constexpr):
    """`steps` loads, the address of each being the result of the one before, past L1."""
    begin = clock()
    pid = tl.program_id(0)
    place = (pid * 977) % lines * WORDS
    start_ns = globaltimer()
    start = clock()
    for _ in range(steps):
        place = tl.load(chain + place, cache_modifier=".cg")
    # The store needs the last load; the clock is read after it.
    tl.store(ends + pid, place)
    end = clock()
    end_ns = globaltimer()
    _mark(marks, begin, start, end, start_ns, end_ns, COUNT)


@triton.jit
def barriers_kernel(marks, steps, COUNT: tl.constexpr):
    """`steps` barriers of all warps of a block."""
    begin = clock()
    start_ns = globaltimer()
    start = clock()
    for _ in range(steps):
        tl.debug_barrier()
    end = clock()
    end_ns = globaltimer()
    _mark(marks, begin, start, end, start_ns, end_ns, COUNT)


@gluon.jit
def _gluon_clock():
    return gl.inline_asm_elementwise(
        "mov.u64 $0, %clock64;", "=l", [], dtype=gl.int64, is_pure=False, pack=1
    )


@gluon.jit
def tma_kernel(source, waits, tiles, steps):
    """Sum of the clocks from the issue of a TMA copy to its arrival, over `steps` copies."""
    ROWS: gl.constexpr = source.block_type.shape[0]
    buffer = gl.allocate_shared_memory(source.dtype, source.block_type.shape, source.layout)
    filled = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(filled, count=1)
    pid = gl.program_id(0)
    total = _gluon_clock() * 0
    for step in range(steps):
        row = (pid * 977 + step * 131) % tiles * ROWS
        mbarrier.expect(filled, source.block_type.nbytes)
        issued = _gluon_clock()
        tma.async_copy_global_to_shared(source, [row, 0], filled, buffer)
        mbarrier.wait(filled, step & 1)
        total += _gluon_clock() - issued
    gl.store(waits + pid, total)


def _marks(programs: int, like: Tensor) -> Tensor:
    return like.new_zeros((programs, MARKS), dtype=torch.int64)


def products(left: Tensor, right: Tensor, programs: int, steps: int) -> Tensor:
    """Marks [programs, MARKS] of `products_kernel`.

    left: [TILE_M, TILE_K], right: [TILE_N, TILE_K], bf16. A step is FLOPS operations.
    """
    marks = _marks(programs, left)
    sums = left.new_empty((programs,), dtype=torch.float32)
    launch(
        products_kernel, (programs,), left, right, sums, marks, steps,
        M=TILE_M, N=TILE_N, K=TILE_K, REPEATS=REPEATS, COUNT=MARKS, num_warps=8,
    )  # fmt: skip
    return marks


def stream(data: Tensor, programs: int, rounds: int) -> float:
    """Start `stream_kernel` over `data` (int32, whole tiles); returns the bytes that it reads."""
    tiles = data.numel() // STREAM_WORDS
    sums = data.new_empty((programs,))
    launch(stream_kernel, (programs,), data, sums, tiles, rounds, WORDS=STREAM_WORDS, num_warps=8)
    return 4.0 * STREAM_WORDS * programs * rounds


def chase(chain: Tensor, programs: int, steps: int) -> Tensor:
    """Marks of `chase_kernel` over a chain of `chain_of`."""
    marks, ends = _marks(programs, chain), chain.new_empty((programs,))
    lines = chain.numel() // LINE_WORDS
    launch(
        chase_kernel, (programs,), chain, ends, marks, lines, steps,
        WORDS=LINE_WORDS, COUNT=MARKS, num_warps=1,
    )  # fmt: skip
    return marks


def chain_of(lines: int, device: torch.device, seed: int = 0) -> Tensor:
    """int32 [lines * LINE_WORDS]: the first word of every line points to another line.

    All lines form one cycle in random order, so that no prefetch and no cache of a line helps.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(lines, generator=generator)
    chain = torch.zeros(lines * LINE_WORDS, dtype=torch.int32)
    chain[order * LINE_WORDS] = (order.roll(-1) * LINE_WORDS).int()
    return chain.to(device)


def barriers(like: Tensor, programs: int, steps: int, warps: int) -> Tensor:
    """Marks of `barriers_kernel` on the device of `like`."""
    marks = _marks(programs, like)
    launch(barriers_kernel, (programs,), marks, steps, COUNT=MARKS, num_warps=warps)
    return marks


def tma_copies(source: Tensor, programs: int, steps: int) -> Tensor:
    """Clocks [programs] that `steps` copies of 8 KiB waited in all; needs compute capability 9.0.

    source: [rows, COPY_COLUMNS] bf16, whole tiles of COPY_ROWS rows.
    """
    waits = source.new_zeros((programs,), dtype=torch.int64)
    block = [COPY_ROWS, COPY_COLUMNS]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
    described: Any = TensorDescriptor.from_tensor(source, block, layout)
    launch(
        tma_kernel, (programs,), described, waits, source.shape[0] // COPY_ROWS, steps, num_warps=1
    )
    return waits
