"""The temporal objective with its three heads and two losses."""

from __future__ import annotations

import math

import pytest
import torch

from svilm_fast.models.config import ModelConfig
from svilm_fast.models.precision import unit_norm
from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.objectives.svilm import build_model
from svilm_fast.objectives.temporal import (
    TemporalConfig,
    TemporalObjective,
    masked_segment_loss,
)

BATCH, SEGMENTS, DIM = 3, 4, 8
PASTED = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
PRESENT = torch.ones(BATCH, SEGMENTS, dtype=torch.bool)


def _objective(**settings: object) -> TemporalObjective:
    torch.manual_seed(0)
    config = TemporalConfig(**{"heads": 2} | settings)
    return TemporalObjective(config, ModelConfig(embed_dim=DIM), SEGMENTS).double()


def _segments() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(BATCH, SEGMENTS, DIM, dtype=torch.float64, generator=generator)
    return unit_norm(drawn).requires_grad_()


@pytest.mark.parametrize("head", ["centroid", "rnn", "transformer"])
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_every_head_trains(head, loss):
    objective = _objective(head=head, loss=loss)
    optimizer = torch.optim.Adam([segments := _segments(), *objective.parameters()], lr=0.02)
    losses = []
    for _ in range(30):
        value = objective.loss(segments, PRESENT, PASTED)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in objective.parameters())


def test_centroid_loss_by_its_definition():
    segments = _segments().detach()
    losses = []
    for z, mask in zip(segments, PASTED, strict=True):
        if mask.all():
            losses.append(torch.zeros((), dtype=torch.float64))
            continue
        logits = z @ (z[mask].mean(0) - z[~mask].mean(0)) / 0.1
        losses.append(torch.nn.functional.softplus(logits * (1 - 2 * mask.double())).mean())
    expected = torch.stack(losses).mean().item()
    assert _objective().loss(segments, PRESENT, PASTED).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("head", ["rnn", "transformer"])
def test_missing_segments_take_no_part(head):
    objective = _objective(head=head)
    present = PRESENT.clone()
    present[:, 3] = False
    segments = _segments()
    loss = objective.loss(segments, present, PASTED)
    changed = segments.detach().clone()
    changed[:, 3] = 9.0
    torch.testing.assert_close(objective.loss(changed, present, PASTED), loss)
    loss.backward()
    assert not segments.grad[:, 3].any()


def test_a_clip_without_background_or_segments_gives_zero_and_finite_gradients():
    objective = _objective(head="transformer")
    segments = _segments()
    nothing = torch.zeros_like(PRESENT)
    loss = objective.loss(segments, nothing, PASTED)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.isfinite().all() for p in objective.parameters())
    assert masked_segment_loss(torch.zeros(1, 4), PASTED[2:], PRESENT[2:], "bce").item() == 0


def test_masked_segment_loss_at_logit_zero():
    logits = torch.zeros(1, 4)
    bce = masked_segment_loss(logits, PASTED[:1], PRESENT[:1], "bce")
    mse = masked_segment_loss(logits, PASTED[:1], PRESENT[:1], "mse")
    assert bce.item() == pytest.approx(math.log(2))
    assert mse.item() == pytest.approx(0.25)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"heads=3 must divide model\.embed_dim=8"):
        build_model(
            SViLMConfig(
                model={"preset": "tiny", "embed_dim": 8},
                objectives={"temporal": {"head": "transformer", "heads": 3}},
            )
        )
