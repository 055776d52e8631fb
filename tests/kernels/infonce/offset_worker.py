"""Offsets beyond 2^31 elements on virtual memory; a 32-bit product of one ends this process."""

import sys

import numpy as np
import torch
import triton
import triton.language as tl
from torch.nn.functional import normalize

from svilm_fast.kernels.device import A100, assume_traits
from svilm_fast.kernels.infonce.fused import backward, forward, layout, tiles

FAR_ROW, DIM = 2**21 + 5, 1024


@triton.jit
def dots_kernel(left, right, out, first, stop, depth, BLOCK: tl.constexpr):
    dots = tiles.tile_dots(
        left, right, first, first, stop, stop, depth, BLOCK, BLOCK, 64, False, "ieee", False
    )
    index = tl.arange(0, BLOCK)
    tl.store(out + index[:, None] * BLOCK + index[None, :], dots)


@triton.jit
def paired_kernel(left, right, out, first, stop, depth, BLOCK: tl.constexpr):
    dots = tiles.paired_dots(left, right, first, 0, stop, stop, depth, BLOCK, 64, "ieee", False)
    tl.store(out + tl.arange(0, BLOCK), dots)


def virtual(rows, columns):
    """Zeros that take no memory until they are touched."""
    return torch.from_numpy(np.zeros((rows, columns), dtype=np.float16))


def far_rows_of_the_inputs():
    matrix = virtual(FAR_ROW + 16, DIM)
    near = torch.randn(16, DIM, generator=torch.Generator().manual_seed(0)).half()
    matrix[FAR_ROW:] = near
    expected = near.double() @ near.double().T
    dots, paired = torch.empty(16, 16), torch.empty(16)
    dots_kernel[(1,)](matrix, matrix, dots, FAR_ROW, FAR_ROW + 16, DIM, BLOCK=16)
    paired_kernel[(1,)](matrix, matrix, paired, FAR_ROW, FAR_ROW + 16, DIM, BLOCK=16)
    torch.testing.assert_close(dots.double(), expected, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(paired.double(), expected.diagonal(), rtol=1e-3, atol=1e-2)


def far_rows_of_the_gradient():
    stride, rows = 2**24, 200
    assert (rows - 1) * stride > 2**31
    generator = torch.Generator().manual_seed(0)
    videos, texts = (
        normalize(torch.randn(rows, 16, generator=generator), dim=1).half() for _ in range(2)
    )
    block = forward.CallTensors(videos, texts, torch.tensor(5.0), None, None, None, 0)
    _, logs = forward.forward(block, with_loss=True)
    tile = layout.tile_of(videos)
    step = backward.Step(block, logs, torch.ones(()), rows, 1.0, tile)
    far = virtual(rows, stride)
    step.write_dots_gradient(far, 0, rows)
    logits = 5.0 * videos.double() @ texts.double().T
    expected = logits.softmax(0) + logits.softmax(1) - 2 * torch.eye(rows)
    torch.testing.assert_close(far[:, :rows].double(), expected, rtol=2e-3, atol=1e-4)


if __name__ == "__main__":
    with assume_traits(A100):
        {"inputs": far_rows_of_the_inputs, "gradient": far_rows_of_the_gradient}[sys.argv[1]]()
