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
    counts = torch.bincount(segment_index, minlength=num_segments).clamp(min=1)
    return (sums / counts[:, None]).to(tokens.dtype)


PROVIDERS: dict[str, Provider] = {"eager": eager, "compile": compiled(eager)}
