"""Scales: clamped in forward, never stuck, never below fp32."""

from __future__ import annotations

import math

import pytest
import torch

from svilm_fast.objectives.scale import Scalar, Scale, ScaleConfig

LIKE = torch.zeros(())


def _scale(logarithm: float) -> Scale:
    scale = Scale(ScaleConfig(initial=10.0, minimum=1.0, maximum=100.0))
    with torch.no_grad():
        scale.logarithm.scale_value.fill_(logarithm)
    return scale


def test_starts_at_its_initial_value():
    assert Scale(ScaleConfig())(LIKE).item() == pytest.approx(1 / 0.07, rel=1e-6)


@pytest.mark.parametrize("logarithm,value", [(-2.0, 1.0), (2.0, math.exp(2)), (9.0, 100.0)])
def test_forward_clamps_and_leaves_the_parameter_alone(logarithm, value):
    scale = _scale(logarithm)
    assert scale(LIKE).item() == pytest.approx(value, rel=1e-6)
    assert scale.logarithm.scale_value.item() == logarithm


@pytest.mark.parametrize(
    "logarithm,sign,moves", [(9.0, 1, True), (9.0, -1, False), (-2.0, -1, True), (-2.0, 1, False)]
)
def test_beyond_a_bound_only_the_way_back_has_a_gradient(logarithm, sign, moves):
    scale = _scale(logarithm)
    (sign * scale(LIKE)).backward()
    assert bool(scale.logarithm.scale_value.grad) is moves


def test_gradient_inside_the_bounds():
    scale = _scale(1.5).double()
    assert torch.autograd.gradcheck(lambda _: scale(LIKE.double()), scale.logarithm.scale_value)


def test_a_fixed_scale_has_no_parameter():
    scale = Scale(ScaleConfig(initial=5.0, learnable=False))
    assert list(scale.parameters()) == []
    assert scale(LIKE.double()).dtype == torch.float64
    assert scale(LIKE).item() == 5.0


def test_bf16_parameter_reads_the_fp32_master_and_still_learns():
    scalar = Scalar(2.6592).bfloat16()
    assert scalar().dtype == torch.float32
    master = torch.tensor([2.6592 + 1e-4])
    scalar.read_master = lambda: master
    value = scalar()
    assert value.shape == ()
    assert value.item() == pytest.approx(2.6593, abs=1e-6)
    value.backward()
    assert scalar.scale_value.grad.item() == 1.0
