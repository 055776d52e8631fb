"""Properties that hold for any input of the fused path."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.grounding import grounding_loss, grounding_scores, matrix_infonce

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter"),
    # What overflows is masked; numpy warns all the same.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

EXAMPLES = {"fast": 10, "full": 25}
SIZES = st.fixed_dictionaries(
    {
        "videos": st.integers(1, 7),
        "groups": st.integers(1, 11),
        "nouns": st.integers(1, 3),
        "dim": st.sampled_from([3, 16, 40]),
        "dtype": st.sampled_from([torch.float16, torch.float32]),
        "seed": st.integers(0, 1000),
    }
)
AMOUNT = pytest.mark.parametrize("amount", ["fast", pytest.param("full", marks=pytest.mark.slow)])


def problem(videos, groups, nouns, dim, dtype, seed):
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return normalize(torch.randn(shape, generator=generator), dim=-1).to(dtype)

    mask = torch.rand(videos, nouns, generator=generator) < 0.7
    beta = torch.rand((), generator=generator) * 60
    scale = torch.rand((), generator=generator) * 50
    return unit(videos, groups, dim), unit(videos, nouns, dim), mask, beta, scale


def differentiated(groups, nouns, mask, beta, scale):
    leaves = [t.detach().requires_grad_() for t in (groups, nouns, beta, scale)]
    loss = grounding_loss(leaves[0], leaves[1], mask, leaves[2], leaves[3], backend="fused")
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def examples(amount, **strategies):
    def decorate(body):
        quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
        options = settings(
            max_examples=EXAMPLES[amount],
            deadline=None,
            derandomize=True,
            suppress_health_check=quiet,
            database=None,
        )
        options(given(**strategies)(body))()

    return decorate


def near(found, expected, dtype, *summands):
    # Sums run in another order; gradients are rounded to dtype before they are compared.
    bar = 2e-3 if dtype == torch.float16 else 1e-4
    size = sum(part.double().norm() for part in summands or (expected,)) + 1e-3
    return (found.double() - expected.double()).norm() <= bar * size


@AMOUNT
def test_permuting_the_pairs_permutes_the_gradients(amount):
    @examples(amount, sizes=SIZES)
    def check(sizes):
        groups, nouns, mask, beta, scale = problem(**sizes)
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))
        loss, *gradients = differentiated(groups, nouns, mask, beta, scale)
        again, *permuted = differentiated(groups[order], nouns[order], mask[order], beta, scale)
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
        for place in (0, 1):
            assert near(permuted[place], gradients[place][order], sizes["dtype"])
        for place in (2, 3):
            torch.testing.assert_close(permuted[place], gradients[place], rtol=1e-3, atol=1e-4)


@AMOUNT
def test_absent_nouns_and_their_values_change_nothing(amount):
    @examples(amount, sizes=SIZES, more=st.integers(1, 4))
    def check(sizes, more):
        groups, nouns, mask, beta, scale = problem(**sizes)
        garbage = torch.full((len(groups), more, sizes["dim"]), float("inf"), dtype=nouns.dtype)
        longer = torch.cat([garbage, nouns.masked_fill(~mask[:, :, None], torch.nan)], 1)
        longer_mask = torch.cat([torch.zeros(len(groups), more, dtype=torch.bool), mask], 1)
        loss, *gradients = differentiated(groups, nouns, mask, beta, scale)
        again, *found = differentiated(groups, longer, longer_mask, beta, scale)
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
        assert near(found[0], gradients[0], sizes["dtype"])
        assert near(found[1][:, more:], gradients[1], sizes["dtype"])
        assert torch.count_nonzero(found[1][~longer_mask]) == 0


@AMOUNT
def test_the_backward_is_linear_in_the_upstream_gradient(amount):
    @examples(amount, sizes=SIZES, exponent=st.integers(-20, 20))
    def check(sizes, exponent):
        groups, nouns, mask, beta, _ = problem(**sizes | {"dtype": torch.float32})
        half = sizes["dtype"] == torch.float16
        leaves = [t.to(sizes["dtype"]).requires_grad_() for t in (groups, nouns)]
        generator = torch.Generator().manual_seed(sizes["seed"])
        first, second = torch.randn(2, len(groups), len(groups), generator=generator)
        # float16 gradients cannot hold everything that float32 upstream gradients can.
        factor = 2.0 ** (exponent // 5 if half else exponent)

        def gradients(upstream):
            scores = grounding_scores(leaves[0], leaves[1], mask, beta, backend="fused")
            return torch.autograd.grad((scores * upstream).sum(), leaves)

        together = gradients(factor * (first + second))
        for one, other, both in zip(gradients(first), gradients(second), together):
            expected = one.double() + other.double()
            assert near(both.double() / factor, expected, sizes["dtype"], one, other)


@AMOUNT
def test_scores_lie_between_the_least_and_largest_dot_product(amount):
    @examples(amount, sizes=SIZES)
    def check(sizes):
        groups, nouns, mask, beta, _ = problem(**sizes)
        scores = grounding_scores(groups, nouns, mask, beta, backend="fused")
        dots = torch.einsum("ckd,vgd->vckg", nouns.double(), groups.double())
        weights = mask.double() / mask.sum(1, keepdim=True).clamp(min=1)
        low = torch.einsum("vck,ck->vc", dots.amin(-1), weights)
        high = torch.einsum("vck,ck->vc", dots.amax(-1), weights)
        assert (scores >= low - 1e-6).all()
        assert (scores <= high + 1e-6).all()


@AMOUNT
def test_a_common_shift_of_all_scores_changes_nothing(amount):
    @examples(
        amount,
        size=st.integers(1, 9),
        shift=st.sampled_from([0.0, 1e2, 1e4]),
        scale=st.sampled_from([1.0, 10.0, 100.0]),
        seed=st.integers(0, 1000),
    )
    def check(size, shift, scale, seed):
        generator = torch.Generator().manual_seed(seed)
        # Eighths, so that the shift itself rounds nothing.
        scores = torch.randint(-8, 8, (size, size), generator=generator) / 8
        results = []
        for matrix in (scores, scores + shift):
            leaf = matrix.requires_grad_()
            loss = matrix_infonce(leaf, torch.tensor(scale), backend="fused")
            results.append((loss, torch.autograd.grad(loss, leaf)[0]))
        rounding = 4e-7 * scale * (shift + 1)
        torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=2 * rounding + 1e-6)
        assert results[1][1].sum().abs() <= scale * (4 * rounding + 1e-6)
        difference = (results[0][1] - results[1][1]).abs().max()
        assert difference <= scale * (2 * rounding + 1e-6)
