"""Names parts of a step, so that profiles and Nsight show them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PREFIX = "svilm."


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark the block as `svilm.<name>` for torch.profiler and, once CUDA is in use, as NVTX range.

    Costs some microseconds on the host and nothing on the device.
    """
    with torch.profiler.record_function(PREFIX + name):
        if not torch.cuda.is_initialized():
            yield
            return
        with torch.cuda.nvtx.range(PREFIX + name):
            yield
