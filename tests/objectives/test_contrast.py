"""The contrast objective and its accuracy."""

from __future__ import annotations

import math

import pytest
import torch

from svilm_fast.models.precision import unit_norm
from svilm_fast.objectives.contrast import (
    ContrastConfig,
    ContrastObjective,
    retrieval_accuracy,
)


def test_identical_rows_give_log_b():
    same = unit_norm(torch.ones(5, 8))
    loss, scale = ContrastObjective(ContrastConfig()).loss(same, same)
    assert loss.item() == pytest.approx(math.log(5), rel=1e-6)
    assert scale.item() == pytest.approx(1 / 0.07, rel=1e-6)


def test_loss_by_cross_entropy():
    torch.manual_seed(0)
    videos, texts = (unit_norm(torch.randn(6, 8).double()) for _ in range(2))
    objective = ContrastObjective(ContrastConfig(scale={"initial": 4.0}))
    logits = 4.0 * videos @ texts.T
    target = torch.arange(6)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    assert objective.loss(videos, texts)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_partner_is_no_negative_when_excluded():
    torch.manual_seed(0)
    videos, texts = (unit_norm(torch.randn(4, 8).double()) for _ in range(2))
    pairs = torch.tensor([0, 0, 1, 1])
    objective = ContrastObjective(ContrastConfig(exclude_partner=True, scale={"initial": 4.0}))
    logits = 4.0 * videos @ texts.T
    keep = (pairs[:, None] != pairs) | torch.eye(4, dtype=torch.bool)
    masked = logits.masked_fill(~keep, -math.inf)
    own = logits.diagonal()
    expected = (masked.logsumexp(1) - own + masked.logsumexp(0) - own).mean() / 2
    assert objective.loss(videos, texts, pairs)[0].item() == pytest.approx(
        expected.item(), rel=1e-6
    )
    with pytest.raises(ValueError, match="exclude_partner needs the pair_ids"):
        objective.loss(videos, texts)
    plain = ContrastObjective(ContrastConfig(scale={"initial": 4.0}))
    assert plain.loss(videos, texts, pairs)[0] > objective.loss(videos, texts, pairs)[0]


def test_accuracy_counts_nearest_neighbours_in_both_directions():
    texts = torch.eye(4)
    videos = torch.eye(4)[[0, 1, 1, 3]]
    to_text, to_video = retrieval_accuracy(videos, texts)
    assert (to_text.item(), to_video.item()) == (0.75, 0.75)
    skewed = torch.tensor([[1.0, 0, 0, 0], [0.9, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    to_text, to_video = retrieval_accuracy(skewed, texts)
    assert (to_text.item(), to_video.item()) == (0.75, 1.0)
