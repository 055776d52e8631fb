"""The ceilings of the device, measured in the same run: one large product, one large copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from svilm_fast.bench.timing import measure


@dataclass(frozen=True)
class Ceilings:
    """Measured product rate (FLOP/s) and copy rate (bytes read plus written per second)."""

    product_flops: float
    copy_bytes: float

    def describe(self) -> str:
        """Both rates as one line of text."""
        product, copy = self.product_flops / 1e12, self.copy_bytes / 1e9
        return f"ceilings of this run: product {product:.3g} TFLOP/s, copy {copy:.3g} GB/s"


def measure_ceilings(device: torch.device) -> Ceilings:
    """An 8192-cubed bf16 product and a 1 GiB copy on CUDA; 1024-cubed fp32 and 64 MiB on CPU.

    The fastest sample counts: a ceiling lowered by other work would make the ops look better.
    """
    cuda = device.type == "cuda"
    size, dtype, copied = (8192, torch.bfloat16, 2**30) if cuda else (1024, torch.float32, 2**26)
    generator = torch.Generator(device=device).manual_seed(0)
    a = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    b = torch.randn(size, size, device=device, dtype=dtype, generator=generator)
    product = measure(lambda: a @ b, device, memory=False)
    source = torch.randint(0, 255, (copied,), device=device, dtype=torch.uint8, generator=generator)
    target = torch.empty_like(source)
    copy = measure(lambda: target.copy_(source), device, memory=False)
    return Ceilings(
        product_flops=2 * size**3 / (min(product.samples_ms) * 1e-3),
        copy_bytes=2 * copied / (min(copy.samples_ms) * 1e-3),
    )
