"""Inputs and the independent float64 oracle of the InfoNCE tests."""

import pytest
import torch
from torch.nn.functional import normalize


def unit_rows(rows, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1).to(
        dtype
    )


def naive_loss(
    videos, texts, scale, *, offset=0, video_ids=None, text_ids=None, pair_mode="exclude"
):
    """Eager float64 on the whole matrix: targets and `log_softmax`, no shared tricks."""
    logits = scale * videos.double() @ texts.double().T
    rows, columns = logits.shape
    diagonal = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        if 0 <= row + offset < columns:
            diagonal[row, row + offset] = True
    same = diagonal
    if video_ids is not None:
        same = video_ids[:, None] == text_ids[None, :]
    if pair_mode == "exclude":
        logits = logits.masked_fill(same & ~diagonal, -1e30)
        same = diagonal
    same = same.double()
    paired_rows, paired_columns = diagonal.any(1), diagonal.any(0)
    row_target = (same / same.sum(1, keepdim=True).clamp(min=1))[paired_rows]
    column_target = (same / same.sum(0, keepdim=True).clamp(min=1))[:, paired_columns]
    row_terms = -(row_target * torch.log_softmax(logits, 1)[paired_rows]).sum(1)
    column_terms = -(column_target * torch.log_softmax(logits, 0)[:, paired_columns]).sum(0)
    return (row_terms.mean() + column_terms.mean()) / 2


@pytest.fixture
def rows():
    return unit_rows


@pytest.fixture
def oracle():
    return naive_loss
