"""Distillation from stored embeddings: the value by its definition, and what may be configured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from svilm_fast.objectives.config import SViLMConfig
from svilm_fast.objectives.distill import DistillConfig
from svilm_fast.objectives.svilm import build_model

ALONE = {"contrast": {"weight": 0.0}, "grounding": {"weight": 0.0}, "temporal": {"weight": 0.0}}


def _unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


def _objective(width=8, teacher=8, **settings):
    torch.manual_seed(0)
    config = DistillConfig(teacher_width=teacher, **settings)
    blocks = SViLMConfig(
        model={"preset": "tiny", "embed_dim": width}, objectives=ALONE | {"contrast": {}}
    )
    return config.build("distill", blocks).double()


def _divergence(student: Tensor, teacher: Tensor, sharpness: float, diagonal: bool) -> float:
    """Mean over rows of sum_j p_ij log(p_ij / q_ij), one number at a time."""
    total = 0.0
    for i in range(len(student)):
        columns = [j for j in range(len(student)) if diagonal or j != i]
        p = (sharpness * teacher[i, columns]).softmax(0)
        q = (sharpness * student[i, columns]).softmax(0)
        total += sum(float(a) * (float(a.log()) - float(b.log())) for a, b in zip(p, q))
    return total / len(student)


def test_relations_are_the_mean_divergence_of_both_directions():
    objective = _objective(loss="relations", sharpness=5.0)
    v, t, tv, tt = (
        _unit(6, 8, seed=1),
        _unit(6, 8, seed=2),
        _unit(6, 5, seed=3),
        _unit(6, 5, seed=4),
    )
    both = _divergence(v @ t.T, tv @ tt.T, 5.0, True) + _divergence(t @ v.T, tt @ tv.T, 5.0, True)
    assert float(objective.relations((v, t), (3 * tv, tt))) == pytest.approx(both / 2, abs=1e-12)
    assert float(objective.relations((tv, tt), (tv, tt))) == pytest.approx(0, abs=1e-12)


def test_relations_of_videos_leave_out_a_video_with_itself():
    objective = _objective(loss="relations", texts=False, sharpness=5.0)
    v, tv = _unit(6, 8, seed=1).requires_grad_(), _unit(6, 5, seed=3)
    loss = objective.relations((v,), (tv,))
    expected = _divergence((v @ v.T).detach(), tv @ tv.T, 5.0, False)
    assert float(loss) == pytest.approx(expected, abs=1e-12)
    loss.backward()
    assert v.grad.isfinite().all()


def test_features_are_the_squared_distance_of_unit_vectors():
    objective = _objective()
    v, tv = _unit(6, 8, seed=1), _unit(6, 8, seed=3)
    expected = (2 - 2 * (v * tv).sum(1)).mean()
    torch.testing.assert_close(objective.features("video", v, 7 * tv), expected)
    wider = _objective(teacher=5)
    assert set(dict(wider.named_parameters())) == {
        f"heads.{side}.{name}" for side in ("video", "text") for name in ("weight", "bias")
    }
    assert 0 < float(wider.features("text", v, _unit(6, 5, seed=3))) < 4


@pytest.mark.parametrize("settings", [{}, {"teacher_width": 5}, {"loss": "relations"}])
def test_a_gradient_cache_changes_nothing(make_config, inputs, settings):
    width = settings.get("teacher_width", 8)
    config = make_config(ALONE | {"distill": settings})
    inputs = replace(
        inputs, teacher_videos=_unit(6, width, seed=5), teacher_texts=_unit(6, width, seed=6)
    )
    torch.manual_seed(0)
    model = build_model(config).double()
    whole = model(inputs).loss
    from svilm_fast.objectives.features import Features

    parts = [model.embed(part) for part in inputs.split(2)]
    joined = model.objective(Features.joined(parts, [1 / 3] * 3)).loss
    torch.testing.assert_close(joined, whole, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(whole, list(model.encoder.video.parameters()), allow_unused=True)
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_the_cost_counts_what_is_computed():
    from svilm_fast.objectives.cost import Shapes

    shapes = Shapes(64, 16, 4, 8, 16, 10, 3, 4, 2)
    features, relations = DistillConfig(), DistillConfig(loss="relations", teacher_width=12)
    assert features.cost(shapes).flops.total == 0
    cost = relations.cost(shapes)
    # Two directions: student forward and two products backward, teacher forward.
    assert cost.flops.total == 2 * (3 * 2 * 64 * 64 * 8 + 2 * 64 * 64 * 12)
    assert [each.what for each in cost.sent][1:] == [
        "student",
        "teacher",
        "gradient of the student",
    ]
    assert relations.cost(replace(shapes, world_size=1, local_batch=64)).sent == ()
    wider = DistillConfig(teacher_width=12).cost(shapes)
    assert wider.flops.forward == 2 * 2 * 64 * 8 * 12
