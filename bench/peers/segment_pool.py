"""Plain and compiled forms of pooling tokens into segments."""

from __future__ import annotations

import torch
from torch import Tensor

from svilm_fast.bench.peers import Provider, compiled


def eager(tokens: Tensor, segment_index: Tensor, num_segments: int) -> Tensor:
    """Scatter-add into fp32 sums, divided by the counts."""
    sums = torch.zeros(
        len(tokens), num_segments, tokens.shape[-1], device=tokens.device, dtype=torch.float32
    )
    sums = sums.index_add(1, segment_index, tokens.float())
    # Not bincount: it waits for the device and cuts a compiled graph in two.
    ones = torch.ones_like(segment_index, dtype=torch.float32)
    counts = ones.new_zeros(num_segments).index_add(0, segment_index, ones).clamp(min=1)
    return (sums / counts[:, None]).to(tokens.dtype)


PROVIDERS: dict[str, Provider] = {"eager": eager, "compile": compiled(eager)}
