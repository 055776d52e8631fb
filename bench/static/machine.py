"""Every number that the static model assumes about an H200 (sm_90). None of them was measured here.

`bench.gpu.measure` measures them; docs/static-gate.md says how to take its results over.

Sources: [data] NVIDIA's data sheet or programming guide; [public] derived from published
measurements of other kernels; [guess] an estimate, bracketed.
"""

from __future__ import annotations

from typing import NamedTuple


class Bracket(NamedTuple):
    """A pessimistic, a central and an optimistic value."""

    pessimistic: float
    central: float
    optimistic: float


SMS = 132  # [data]
SCHEDULERS = 4  # [data] per SM, one warp instruction per clock each
# [data] 989 TFLOP/s in bf16 without sparsity, at 1.83 GHz.
TENSOR_FLOPS_PER_CLOCK = 4096
# [public] Best products of CUTLASS and fast.cu stay 5 to 7 % below the data sheet at equal clock.
TENSOR_EFFICIENCY = 0.94
SHARED_BYTES_PER_CLOCK = 128  # [data] per SM; operands of products count as well
MUFU_PER_CLOCK = 16  # [data] exponentials, reciprocals and the like, per SM

# [guess] The maximum is 1.98 GHz; an H200 under load lowers it.
CLOCK_HZ = Bracket(1.70e9, 1.80e9, 1.95e9)
# [public] Bytes/s from L2 to all SMs: fast.cu's kernel 6 (777 TFLOP/s) needs 8.1e12, Triton's fp8
# product (1,347 TFLOP/s, Triton pull request 5461) 7.9e12. Other kernels may share less.
L2_RATE = Bracket(7.0e12, 8.8e12, 10.5e12)
# [public] Measured copies on H200: 4.3e12 bytes/s, reads and writes together.
DRAM_RATE = Bracket(4.0e12, 4.2e12, 4.4e12)
# [public] cuBLAS in bf16 at 8192 cubed, limited by power: 769 to 798 TFLOP/s on H200.
SUSTAINED_FLOPS = Bracket(750e12, 790e12, 810e12)
# [guess] Clocks from the issue of a copy to its data in a busy GPU: with TMA, which first reads its
# descriptor, and through pointers (about 270 from L2 in an idle GPU [public]).
TMA_CLOCKS = Bracket(1200, 900, 650)
COPY_CLOCKS = Bracket(700, 500, 350)
# [guess] Clocks until a new block runs, where a program is a tile.
BLOCK_START_CLOCKS = Bracket(400, 300, 200)
# [guess] Clocks that a block loses at a barrier of all its warps.
BARRIER_CLOCKS = Bracket(40, 25, 10)
# [guess] Share of the issue slots that the warps of one block can use.
ISSUE_EFFICIENCY = Bracket(0.6, 0.75, 0.9)
# [guess] With n > 1 blocks on an SM, this / n^2 of what a lone block would wait stays exposed.
EXPOSED = Bracket(2, 1, 0)
# [guess] What the model does not see (bank conflicts, L2 misses, waves); taken from an earlier
# model by hand, which was fitted on public products and attention, and not fitted again.
ACHIEVED = Bracket(0.88, 0.93, 1.0)

# Of whole ops:
# [guess] FLOP/s of cuBLAS before waves of tiles; the central value is infonce's `PRODUCT_RATE`.
LIBRARY_FLOPS = Bracket(600e12, 680e12, 750e12)
# [guess] Tiles of which cuBLAS takes the faster, and the share of the rate that they reach: plain
# products with tiles of 128 x 128 reach about 0.8 of the others [public].
LIBRARY_TILES = {(128, 256): 1.0, (128, 128): 0.8}
# [guess] From the end of a launch to the start of the next one in the same stream.
LAUNCH_SECONDS = Bracket(5e-6, 3e-6, 2e-6)

# The floors in the READMEs of the ops, to which shares refer: measured on an H200.
FLOOR_FLOPS = 790e12
FLOOR_DRAM_RATE = 4.3e12
