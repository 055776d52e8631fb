"""What the Gluon kernels on sm_90 share: products of videos from a ring with a resident text tile.

One warp copies with TMA and two warp groups take every second product. The tile of texts has one
buffer per step of depth; the videos go through a ring of STAGES buffers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Depth of a stage of the ring: 128 bytes of half precision, the widest swizzle.
DEPTH = 64
# Up to this width, the tile of texts leaves room for stages of 128 rows.
WIDE_STAGES_DIM = 256
# Registers of a thread that multiplies. Three warp groups share 65,536: 2 x 128 x 240 + 128 x 24.
PRODUCT_REGISTERS = 240
COPY_REGISTERS = 24
MEAN_REGISTERS = (2 * PRODUCT_REGISTERS + COPY_REGISTERS) // 3


@gluon.jit
def ring_product(
    operands,
    barriers,
    product,
    new_texts,
    texts_phase,
    layout: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Dot products [BLOCK_M, BLOCK_N] number `product` of a program, in the turn of GROUP.

    With `new_texts`, the group has not multiplied the tile of texts of this phase before.
    """
    text_tile, ring = operands
    text_filled, filled, freed, turns = barriers
    # The other group has issued its products; group 0 has the first turn. Without turns, a group
    # could also be two phases of a stage ahead, which have the same parity.
    mbarrier.wait(turns.index(GROUP), (product // 2 & 1) ^ (1 - GROUP))
    dots = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=layout)
    for step in gl.static_range(STEPS):
        copy = product * STEPS + step
        stage = copy % STAGES
        mbarrier.wait(text_filled.index(step), texts_phase, pred=new_texts)
        mbarrier.wait(filled.index(stage), copy // STAGES & 1)
        dots = warpgroup_mma(
            ring.index(stage),
            text_tile.index(step).permute((1, 0)),
            dots,
            use_acc=step > 0,
            is_async=True,
        )
        if step > 0:
            # The product of the step before has read its stage.
            dots = warpgroup_mma_wait(1, deps=(dots,))
            mbarrier.arrive(freed.index((copy - 1) % STAGES), count=1)
    mbarrier.arrive(turns.index(1 - GROUP), count=1)
    dots = warpgroup_mma_wait(0, deps=(dots,))
    mbarrier.arrive(freed.index((product * STEPS + STEPS - 1) % STAGES), count=1)
    return dots


def rows_at_once(dim: int) -> int:
    """Rows of a product, which one warp group takes."""
    return 128 if dim <= WIDE_STAGES_DIM else 64


def blocks(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A descriptor of blocks [rows, columns] of a half-precision matrix."""
    element = gl.bfloat16 if matrix.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], element)
    return TensorDescriptor.from_tensor(matrix, [rows, columns], layout)
