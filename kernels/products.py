"""Matrix products with fp32 accumulation that the kernels' host code leaves to the library."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulate_product(out: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """out [m, n] fp32 (+)= left [m, k] @ right [k, n], accumulated in fp32; half or fp32 factors.

    Or all three with one more dimension in front. `first` overwrites. Does nothing on `meta`
    tensors: those only record launches.
    """
    if out.is_meta:
        return
    batched = out.dim() == 3
    multiply, add = (torch.bmm, torch.baddbmm) if batched else (torch.mm, torch.addmm)
    with torch.autocast(out.device.type, enabled=False):
        if out.device.type == "cpu" and left.dtype != torch.float32:
            # Only under the interpreter: the CPU has no half-precision product with an fp32 result.
            left, right = left.float(), right.float()
        if left.dtype == torch.float32:
            add(out, left, right, beta=0 if first else 1, out=out)
        elif first:
            multiply(left, right, out_dtype=torch.float32, out=out)
        else:
            add(out, left, right, out_dtype=torch.float32, out=out)
