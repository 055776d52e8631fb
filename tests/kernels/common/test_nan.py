"""A NaN or an infinity that goes in comes out, also where a GPU's maximum passes NaN over."""

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.kernels import grounding_loss, grounding_scores, infonce, matrix_infonce
from svilm_fast.kernels.backend import interpreted

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter"),
    pytest.mark.usefixtures("gpu_maxima"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
NAN = float("nan")


def unit(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return normalize(torch.randn(shape, generator=generator), dim=-1)


def test_beta_of_grounding():
    beta = torch.tensor(NAN, requires_grad=True)
    groups = unit(4, 8, 32).requires_grad_()
    mask = torch.ones(4, 2, dtype=torch.bool)
    for backend in ("fused", "reference"):
        call = (groups, unit(4, 2, 32), mask, beta)
        assert grounding_scores(*call, backend=backend).isnan().all()
        loss = grounding_loss(*call, 10.0, backend=backend)
        assert loss.isnan()
        assert all(one.isnan().all() for one in torch.autograd.grad(loss, (groups, beta)))


@pytest.mark.parametrize("place", [(0, 1), (3, 3), (4, 0)])
def test_a_score_of_the_matrix(place):
    scores = torch.arange(25.0).view(5, 5) / 25
    scores[place] = NAN
    scores.requires_grad_()
    row, column = place
    for backend in ("fused", "reference"):
        loss = matrix_infonce(scores, 5.0, backend=backend)
        assert loss.isnan()
        gradient = torch.autograd.grad(loss, scores)[0]
        assert gradient[row].isnan().all()
        assert gradient[:, column].isnan().all()


def test_a_video_whose_caption_has_no_noun():
    groups, mask = unit(4, 8, 32), torch.ones(4, 2, dtype=torch.bool)
    groups[1], mask[1] = NAN, False
    for backend in ("fused", "reference"):
        loss = grounding_loss(groups, unit(4, 2, 32), mask, 5.0, 10.0, backend=backend)
        assert loss.isnan()


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("side", ["video", "text"])
def test_a_row_of_infonce_without_a_partner(side, value):
    longer, shorter = unit(40, 32), unit(20, 32)
    longer[30] = value
    pair = (longer, shorter) if side == "video" else (shorter, longer)
    for backend in ("fused", "reference"):
        leaves = [one.clone().requires_grad_() for one in pair]
        loss = infonce(*leaves, 10.0, backend=backend)
        assert loss.isnan(), backend
        others = torch.autograd.grad(loss, leaves)[1 if side == "video" else 0]
        assert others.isnan().any()
