"""Layers, targets and losses of the heads, by hand and against plain implementations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from svilm_fast.core.philox import StepSeeds
from svilm_fast.tasks.localization.actionformer import ActionFormerHead
from svilm_fast.tasks.localization.gtad import (
    GtadHead,
    balanced_entropy,
    balanced_shares,
    likely_boundaries,
)
from svilm_fast.tasks.localization.heads import LocalizationInputs
from svilm_fast.tasks.localization.layers import LocalAttention
from svilm_fast.tasks.localization.losses import distance_iou_loss, sigmoid_focal_loss
from svilm_fast.tasks.localization.settings import ActionFormerSettings, GtadSettings

SMALL = ActionFormerSettings(width=8, heads=2, window=3, levels=3, head_layers=2, ranges=4.0)
SMALL_GTAD = GtadSettings(width=32, hidden=8, samples=2)


def test_focal_loss_by_hand():
    logits, targets = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    share = torch.tensor(2.0).sigmoid()
    expected = torch.stack(
        [0.25 * 0.5**2 * torch.tensor(2.0).log(), -0.75 * share**2 * (1 - share).log()]
    )
    assert torch.allclose(sigmoid_focal_loss(logits, targets), expected)


def test_distance_iou_by_hand():
    # Found [-1, 3] against wanted [-2, 2]: IoU 3/5, middles 1 apart, hull 5.
    loss = distance_iou_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0]]))
    assert loss.item() == pytest.approx(1 - 3 / 5 + (1 / 5) ** 2)
    same = torch.tensor([[1.0, 2.0]])
    assert distance_iou_loss(same, same).item() == pytest.approx(0, abs=1e-6)
    assert distance_iou_loss(torch.zeros(1, 2), torch.zeros(1, 2)).isfinite().all()


def test_local_attention_equals_masked_global_attention():
    torch.manual_seed(0)
    local = LocalAttention(8, 2, 5, 1)
    states, mask = torch.randn(2, 8, 12), torch.arange(12) < torch.tensor([[12], [7]])
    found, _ = local(states, mask)
    query, key, value = (
        project(norm(mixer(states, mask)[0])).unflatten(1, (2, -1)).transpose(2, 3)
        for mixer, norm, project in zip(local.mixers, local.norms, local.projections)
    )
    place = torch.arange(12)
    near = (place[:, None] - place).abs() <= 2
    allowed = (near & mask[:, None, :])[:, None]
    logits = (query @ key.transpose(2, 3)) / 2.0
    mixed = logits.masked_fill(~allowed, -1e9).softmax(-1) @ value
    expected = local.output(mixed.transpose(2, 3).flatten(1, 2)) * mask[:, None]
    assert torch.allclose(found, expected, atol=1e-6)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    head = ActionFormerHead(SMALL, 5, 2).eval()
    features = torch.randn(1, 12, 5)
    mask = torch.ones(1, 12, dtype=torch.bool)
    longer = torch.cat([features, torch.zeros(1, 8, 5)], dim=1)
    short, long = (
        head.proposals(features, mask)[0],
        head.proposals(longer, torch.cat([mask, torch.zeros(1, 8, dtype=torch.bool)], dim=1))[0],
    )
    assert torch.allclose(short.scores, long.scores, atol=1e-6)
    assert torch.allclose(short.segments, long.segments, atol=1e-4)


def test_points_of_the_pyramid():
    points = ActionFormerHead(SMALL, 5, 1).points(8, torch.device("cpu"))
    assert points.places.tolist() == [*range(8), 0, 2, 4, 6, 0, 4]
    assert points.reach[[0, 8, 12]].tolist() == [[0, 4], [4, 8], [8, float("inf")]]
    published = ActionFormerHead(ActionFormerSettings(width=8, heads=2), 5, 1)
    reach = published.points(192, torch.device("cpu")).reach.unique(dim=0).tolist()
    inf = float("inf")
    assert reach == [[0, 4], [4, 8], [8, 16], [16, 32], [32, 64], [64, inf]]
    assert len(published.points(192, torch.device("cpu")).places) == 192 + 96 + 48 + 24 + 12 + 6


def test_targets_by_hand():
    head = ActionFormerHead(SMALL, 5, 3)
    points = head.points(16, torch.device("cpu"))
    segments = torch.tensor([[2.0, 6.0], [1.0, 13.0]])
    targets = head.targets(points, segments, torch.tensor([2, 0]))
    # Level 0, |place - 4| < 1.5, distances up to 4: places 3, 4, 5 belong to the short one.
    level0 = targets.classes[:16]
    assert level0.any(1).nonzero()[:, 0].tolist() == [3, 4, 5]
    assert level0[4].tolist() == [False, False, True]
    assert targets.distances[3].tolist() == [1.0, 3.0]
    # The long one: distances 4 to 8 on level 1, |place - 7| < 3: places 6 and 8.
    level1 = targets.classes[16:24]
    assert (2 * level1.any(1).nonzero()[:, 0]).tolist() == [6, 8]
    assert level1[3].tolist() == [True, False, False]
    empty = head.targets(points, torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    assert not empty.classes.any()


def test_equal_segments_of_two_labels_are_both_targets():
    head = ActionFormerHead(SMALL, 5, 3)
    segments = torch.tensor([[2.0, 6.0], [2.0, 6.0]])
    targets = head.targets(head.points(16, torch.device("cpu")), segments, torch.tensor([2, 0]))
    assert targets.classes[4].tolist() == [True, False, True]


def inputs(count=3, steps=16, width=5):
    torch.manual_seed(1)
    segments = [torch.tensor([[2.0, 6.0]]), torch.tensor([[4.0, 9.0]]), torch.empty(0, 2)]
    labels = [torch.tensor([1]), torch.tensor([0]), torch.empty(0, dtype=torch.int64)]
    seeds = StepSeeds(0, 5, torch.arange(count))
    mask = torch.ones(count, steps, dtype=torch.bool)
    return LocalizationInputs(torch.randn(count, steps, width), mask, segments, labels, seeds)


def test_the_normaliser_is_a_running_mean_and_is_saved():
    head = ActionFormerHead(SMALL.model_copy(update={"normaliser": 10.0}), 5, 2)
    assert "normaliser" in head.state_dict()
    points = head.points(16, torch.device("cpu"))
    data = inputs()
    positive = sum(
        int(head.targets(points, s, k).classes.any(1).sum())
        for s, k in zip(data.segments, data.labels)
    )
    head.train().losses(data)
    assert head.normaliser.item() == pytest.approx(0.9 * 10 + 0.1 * positive)
    before = head.normaliser.item()
    head.eval().losses(data)
    assert head.normaliser.item() == before


def test_a_step_repeats_itself():
    settings = SMALL.model_copy(update={"drop_path": 0.5, "residual_scale": 1.0})
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        head = ActionFormerHead(settings, 5, 2).train()
        torch.rand(3)  # torch's generator has no part in a step
        results.append(head.losses(inputs()).loss)
    assert torch.equal(*results)
    without = head.losses(LocalizationInputs(**{**vars(inputs()), "seeds": None}))
    assert without.loss != results[0]


@pytest.mark.parametrize("name", ["actionformer", "gtad"])
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    head: nn.Module = GtadHead(SMALL_GTAD, 5, 16)
    if name == "actionformer":
        head = ActionFormerHead(SMALL, 5, 2)
        head.distance_head.output.conv.bias.data.fill_(1.0)  # no distance is cut to 0
    head.losses(inputs()).loss.backward()
    missing = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_gtad_targets_by_hand():
    head = GtadHead(SMALL_GTAD, 5, 8)
    # In steps, the proposal of duration index d and start s is [s - 1/2, s + d + 1/2].
    targets = head.targets(torch.tensor([[1.5, 4.5]]))
    assert targets.iou[2, 2] == 1.0
    assert targets.iou[0, 2].item() == pytest.approx(1 / 3)
    assert targets.iou[1, 3].item() == pytest.approx(2 / 3)
    assert targets.iou[7, 7] == 0.0  # it would end beyond the video
    assert targets.starts.tolist() == [0.5, 1.0, 1.0, 0.5, 0, 0, 0, 0]
    assert targets.ends.tolist() == [0, 0, 0, 0.5, 1.0, 1.0, 0.5, 0]


def test_gtad_alignment_equals_the_sum_over_sample_points():
    torch.manual_seed(0)
    head = GtadHead(SMALL_GTAD, 5, 6)
    places = head.sample_places(torch.device("cpu"))
    # Two points inside, one before and one behind, of a proposal of 3 steps that starts at 2.
    assert places[:, 2, 2].tolist() == pytest.approx([2.25, 3.75, 0.75, 5.25])
    sequence = torch.randn(6, 4)
    weights = torch.randn(4, 4, 3)  # sample point, channel, result
    direct = torch.zeros(3)
    exchanged = torch.zeros(3)
    for point, place in enumerate(places[:, 2, 2].clamp(0, 5).tolist()):
        low, share = int(place), place - int(place)
        high = min(low + 1, 5)
        value = sequence[low] * (1 - share) + sequence[high] * share
        direct += value @ weights[point]
        mapped = sequence @ weights[point]
        exchanged += mapped[low] * (1 - share) + mapped[high] * share
    assert torch.allclose(direct, exchanged, atol=1e-5)


def test_gtad_proposals_are_pairs_of_likely_boundaries():
    likely = likely_boundaries(torch.tensor([0.1, 0.3, 0.2, 0.9, 0.6, 0.1]))
    assert likely.tolist() == [False, True, False, True, True, False]
    torch.manual_seed(0)
    head = GtadHead(SMALL_GTAD, 5, 8).eval()
    (found,) = head.proposals(torch.randn(1, 8, 5), torch.ones(1, 8, dtype=torch.bool))
    assert len(found.scores)
    assert (found.segments[:, 0] < found.segments[:, 1]).all()
    assert found.segments.max() <= 7.5
    assert (found.scores.diff() <= 0).all()


def test_balanced_losses():
    logits = torch.zeros(4)
    positive = torch.tensor([True, False, False, False])
    assert balanced_entropy(logits, positive).item() == pytest.approx(torch.tensor(2.0).log())
    iou = torch.tensor([0.9, 0.5, 0.5, 0.1, 0.1, 0.1, 0.0])
    weights = balanced_shares(iou, torch.ones(7, dtype=torch.bool))
    assert weights.tolist() == pytest.approx([1, 0.5, 0.5, 1 / 3, 1 / 3, 1 / 3, 0])
