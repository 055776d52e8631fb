"""Clips of one source video are no negatives of each other, in contrast and in grounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from svilm_fast.kernels.grounding import distributed_grounding_loss, similarity_scores

SOURCES = torch.tensor([5, 9, 5, 7, 9, 5])
KEPT = (SOURCES[:, None] != SOURCES) | torch.eye(6, dtype=torch.bool)


def _dense(logits, valid):
    """Symmetric InfoNCE of the pairs in KEPT; rows only over valid captions, N valid captions."""
    rows = logits.masked_fill(~(KEPT & valid), -torch.inf).logsumexp(1)
    columns = logits.masked_fill(~KEPT, -torch.inf).logsumexp(0)
    terms = rows + columns - 2 * logits.diagonal()
    return terms[valid].sum() / (2 * valid.sum())


def test_contrast(make_model, inputs):
    model = make_model({"grounding": {"weight": 0}, "temporal": {"weight": 0}}).double()
    features = model.embed(replace(inputs, source_ids=SOURCES))
    logits = model.objectives.contrast.scale(features.texts) * (
        features.blended.video @ features.texts.T
    )
    expected = _dense(logits, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(model.objective(features).loss, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("similarity", ["softmax", "max"])
def test_grounding(make_model, inputs, similarity):
    settings = {"grounding": {"similarity": similarity}, "contrast": {"weight": 0}}
    model = make_model(settings | {"temporal": {"weight": 0}}).double()
    features = model.embed(replace(inputs, source_ids=SOURCES))
    objective = model.objectives.grounding
    beta = torch.tensor(3.0, dtype=torch.float64)
    scores = similarity_scores(
        similarity, features.blended.groups, features.nouns, features.noun_mask, beta, {}
    )
    logits = objective.scale(scores) * scores
    expected = _dense(logits, inputs.noun_mask.any(1))
    found = model.objective(features).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    parameters = [each for each in model.parameters() if each.requires_grad]
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True, retain_graph=True)
    for got, want in zip(torch.autograd.grad(found, parameters, allow_unused=True), wanted):
        if want is not None:
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_other_sources_are_all_negatives(make_model, inputs):
    model = make_model({"temporal": {"weight": 0}}).double()
    alone = model(replace(inputs, source_ids=torch.arange(6))).loss
    torch.testing.assert_close(alone, model(inputs).loss, rtol=0, atol=1e-10)
    assert not torch.allclose(model(replace(inputs, source_ids=SOURCES)).loss, alone)


def test_two_kinds_of_masked_pairs_are_refused(make_model, inputs):
    model = make_model({"contrast": {"exclude_partner": True}})
    with pytest.raises(ValueError, match=r"exclude_partner and data.same_source=mask"):
        model(replace(inputs, source_ids=SOURCES))


def test_ids_of_another_shape_are_refused():
    groups, nouns = torch.ones(4, 2, 8), torch.ones(4, 1, 8)
    with pytest.raises(ValueError, match=r"pair_ids must be int64 \[4\]"):
        distributed_grounding_loss(
            groups, nouns, torch.ones(4, 1, dtype=torch.bool), 3.0, 1.0, pair_ids=SOURCES
        )
