"""The other similarities: definitions, gradients, masks, chunks and errors."""

import pytest
import torch
import torch.nn.functional as F

from svilm_fast.kernels.grounding import (
    SIMILARITIES,
    grounding_scores,
    initial_parameters,
    parameter_shapes,
    similarity_scores,
)

BETA = torch.tensor(5.0, dtype=torch.float64)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)

    def unit(*shape):
        return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)

    mask = torch.tensor([[True, True], [True, False], [False, False], [False, True]])
    return unit(5, 3, 6), unit(4, 2, 6), mask


def parameters_of(similarity):
    torch.manual_seed(1)
    shapes = parameter_shapes(similarity, 3, 4)
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def naive(similarity, dots, parameters):
    """One caption's nouns against one video: dots [k, G] -> a number."""
    if similarity == "softmax":
        return (torch.softmax(BETA * dots, -1) * dots).sum(-1).mean()
    if similarity == "max":
        return dots.max(1).values.mean()
    if similarity == "mean":
        return dots.mean()
    if similarity == "maxsim":
        return (dots.max(1).values.mean() + dots.max(0).values.mean()) / 2
    ordered = dots.sort(1, descending=True).values
    if similarity == "linear":
        return (ordered @ parameters["weight"] + parameters["bias"]).mean()
    hidden = F.gelu(ordered @ parameters["hidden_weight"].T + parameters["hidden_bias"])
    return (hidden @ parameters["output_weight"] + parameters["output_bias"]).mean()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("chunk_elements", [1 << 20, 24])
def test_each_similarity_is_its_definition(problem, similarity, chunk_elements):
    groups, nouns, mask = problem
    parameters = parameters_of(similarity)
    got = similarity_scores(
        similarity, groups, nouns, mask, BETA, parameters, chunk_elements=chunk_elements
    )
    for video in range(5):
        for caption in range(4):
            present = nouns[caption][mask[caption]]
            expected = 0.0
            if len(present):
                expected = naive(similarity, present @ groups[video].T, parameters).item()
            assert got[video, caption].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradcheck_in_chunks(problem, similarity):
    groups, nouns, mask = problem
    parameters = parameters_of(similarity)
    names = list(parameters)
    leaves = [t.requires_grad_() for t in (groups, nouns, *parameters.values())]

    def scores(groups, nouns, *values):
        given = dict(zip(names, values))
        return similarity_scores(similarity, groups, nouns, mask, BETA, given, chunk_elements=24)

    assert torch.autograd.gradcheck(scores, leaves)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_absent_nouns_may_hold_nan(problem, similarity):
    groups, nouns, mask = problem
    parameters = parameters_of(similarity)
    expected = similarity_scores(similarity, groups, nouns, mask, BETA, parameters)
    poisoned = nouns.masked_fill(~mask[:, :, None], float("nan")).requires_grad_()
    got = similarity_scores(similarity, groups, poisoned, mask, BETA, parameters)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert torch.isfinite(poisoned.grad).all()


def test_linear_starts_as_the_mean_and_softmax_is_the_op(problem):
    groups, nouns, mask = (t.float() if t.is_floating_point() else t for t in problem)
    beta = BETA.float()
    start = initial_parameters("linear", 3)
    linear = similarity_scores("linear", groups, nouns, mask, beta, start)
    torch.testing.assert_close(linear, similarity_scores("mean", groups, nouns, mask, beta))
    softmax = similarity_scores("softmax", groups, nouns, mask, beta)
    torch.testing.assert_close(softmax, grounding_scores(groups, nouns, mask, beta))


def test_initial_mlp_has_the_declared_shapes_and_repeats():
    first, second = (
        initial_parameters("mlp", 3, 8, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert {name: tuple(t.shape) for name, t in first.items()} == parameter_shapes("mlp", 3, 8)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(tensor.abs().max() <= 3**-0.5 for tensor in first.values())


def test_errors_name_what_is_wrong(problem):
    with pytest.raises(ValueError, match="unknown grounding similarity 'cosine'; expected one of"):
        similarity_scores("cosine", *problem, BETA)
    with pytest.raises(ValueError, match=r"'linear' takes parameters of shapes .*, got \{\}"):
        similarity_scores("linear", *problem, BETA)
    with pytest.raises(ValueError, match=r"'max' takes parameters of shapes \{\}, got"):
        similarity_scores("max", *problem, BETA, {"weight": torch.zeros(3)})
