"""The grounding objective under every similarity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svilm_fast.kernels import use_backend
from svilm_fast.kernels.launch import record_launches
from svilm_fast.models.precision import unit_norm
from svilm_fast.objectives.grounding import GroundingConfig, GroundingObjective

BATCH, GROUPS, NOUNS, DIM = 4, 3, 2, 8
NOUN_MASK = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1]]).bool()


def _embeddings() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(BATCH, GROUPS, DIM, dtype=torch.float64, generator=generator)
    nouns = torch.randn(BATCH, NOUNS, DIM, dtype=torch.float64, generator=generator)
    return unit_norm(groups).requires_grad_(), unit_norm(nouns).requires_grad_()


def _objective(**settings: object) -> GroundingObjective:
    torch.manual_seed(0)
    return GroundingObjective(GroundingConfig(**settings), GROUPS).double()


def test_vectors_of_any_length_never_reach_the_kernels():
    groups, nouns = (30 * one.float() for one in _embeddings())
    mask = torch.ones(nouns.shape[:2], dtype=torch.bool)
    launches = {}
    for unit in (True, False):
        objective = GroundingObjective(GroundingConfig(), GROUPS, unit=unit)
        with use_backend("fused"), record_launches() as launches[unit]:
            found = objective.loss(groups, nouns, mask)[0]
    assert launches[True]
    assert not launches[False]
    expected = GroundingObjective(GroundingConfig(), GROUPS).double()
    with use_backend("reference"):
        truth = expected.loss(groups.double(), nouns.double(), mask)[0]
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("similarity", ["softmax", "max", "mean", "maxsim", "linear", "mlp"])
def test_every_similarity_trains_what_it_owns(similarity):
    objective = _objective(similarity=similarity, beta={"initial": 10.0})
    groups, nouns = _embeddings()
    loss, scale, beta = objective.loss(groups, nouns, NOUN_MASK)
    loss.backward()
    assert loss.dtype == torch.float64
    assert groups.grad.abs().sum() > 0
    assert nouns.grad[NOUN_MASK].abs().sum() > 0
    assert not nouns.grad[~NOUN_MASK].any()
    # A constant added to every score cancels in the softmax over videos and captions.
    still = [name for name, p in objective.named_parameters() if p.grad.abs().max() < 1e-12]
    assert still == {"linear": ["scores.bias"], "mlp": ["scores.output_bias"]}.get(similarity, [])
    assert scale.item() == pytest.approx(1 / 0.07)
    assert beta.item() == 10.0
    owned = {name.partition(".")[0] for name, _ in objective.named_parameters()}
    expected = {"softmax": {"scale", "beta"}, "linear": {"scale", "scores"}}
    assert owned == expected.get(
        similarity, {"scale", "scores"} if similarity == "mlp" else {"scale"}
    )


def test_softmax_loss_by_its_definition():
    objective = _objective(beta={"initial": 3.0}, scale={"initial": 5.0})
    groups, nouns = (tensor.detach() for tensor in _embeddings())
    scores = torch.zeros(BATCH, BATCH, dtype=torch.float64)
    for i in range(BATCH):
        for j in range(BATCH):
            real = nouns[j][NOUN_MASK[j]]
            for noun in real:
                dots = groups[i] @ noun
                scores[i, j] += (dots * (3.0 * dots).softmax(0)).sum() / len(real)
    valid = NOUN_MASK.any(1)
    logits = 5.0 * scores
    rows = logits[:, valid].logsumexp(1) - logits.diagonal()
    columns = logits.logsumexp(0) - logits.diagonal()
    expected = (rows[valid].sum() + columns[valid].sum()) / (2 * valid.sum())
    assert objective.loss(groups, nouns, NOUN_MASK)[0].item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_without_any_noun_the_loss_is_a_connected_zero():
    groups, nouns = _embeddings()
    loss, _, _ = _objective().loss(groups, nouns, torch.zeros_like(NOUN_MASK))
    loss.backward()
    assert loss.item() == 0
    assert not groups.grad.any()


def test_a_fixed_beta_is_no_parameter():
    names = [name for name, _ in _objective(beta={"learnable": False}).named_parameters()]
    assert names == ["scale.logarithm.scale_value"]
