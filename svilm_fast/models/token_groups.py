"""Which group every token belongs to, and which groups a noun attends to, as arrays."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from svilm_fast.models.features import VideoFeatures

NO_GROUP = -1


def group_grid(features: VideoFeatures) -> np.ndarray | None:
    """The last grouping block's assignment on the token grid: int [b, P, h, w], -1 for dropped."""
    if not features.assignments:
        return None
    index = features.assignments[-1].index.long().cpu()
    time, height, width = features.grid
    grid = torch.full((len(index), time * height * width), NO_GROUP)
    ids = features.token_ids.cpu()
    if features.token_mask is None:
        grid.scatter_(1, ids, index)
    else:
        for row, mask in enumerate(features.token_mask.cpu()):
            grid[row, ids[row][mask]] = index[row][mask]
    return grid.reshape(-1, time, height, width).numpy()


def noun_weights(groups: Tensor | None, nouns: Tensor | None, beta: float) -> np.ndarray | None:
    """softmax over groups of beta <n, g>: groups [b, G, D], nouns [b, K, D] to float [b, K, G]."""
    if groups is None or nouns is None:
        return None
    scores = torch.einsum("bkd,bgd->bkg", nouns.float(), groups.float())
    return (beta * scores).softmax(dim=-1).cpu().numpy()
