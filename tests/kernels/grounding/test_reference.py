"""The reference against closed forms, an independent einsum and numerical gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from svilm_fast.kernels.grounding import (
    grounding_loss,
    grounding_scores,
    matrix_infonce,
    reference,
)
from svilm_fast.kernels.registry import ops


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def problem(videos=5, captions=4, groups=3, nouns=2, dim=6, seed=0):
    mask = torch.rand(captions, nouns, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0] = False
    mask[1] = True
    return unit(videos, groups, dim, seed=seed), unit(captions, nouns, dim, seed=seed + 1), mask


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def naive_scores(groups, nouns, mask, beta):
    """Forms the pooled region vector of every (video, caption, noun), one exponential at a time."""
    dots = torch.einsum("ckd,vgd->vckg", nouns, groups)
    power = (beta * dots).exp()
    regions = torch.einsum("vckg,vgd->vckd", power / power.sum(-1, keepdim=True), groups)
    similarity = torch.einsum("vckd,ckd->vck", regions, nouns)
    count = mask.sum(1).clamp(min=1)
    return (similarity * mask).sum(-1) / count


@pytest.mark.parametrize("chunk_elements", [1 << 22, 7])
def test_scores_and_gradients_equal_the_pooled_region_form(chunk_elements):
    groups, nouns, mask = problem()
    upstream = torch.randn(5, 4, dtype=torch.float64)
    results = []
    for function in (naive_scores, reference.grounding_scores):
        leaves = [t.clone().requires_grad_() for t in (groups, nouns, scalar(7.0))]
        options = {} if function is naive_scores else {"chunk_elements": chunk_elements}
        scores = function(leaves[0], leaves[1], mask, leaves[2], **options)
        gradients = torch.autograd.grad((scores * upstream).sum(), leaves)
        results.append((scores, *gradients))
    for expected, got in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_elements", [1 << 22, 20])
def test_scores_gradcheck(chunk_elements):
    groups, nouns, mask = problem(videos=3, captions=3)
    leaves = [t.requires_grad_() for t in (groups, nouns, scalar(3.0))]
    assert torch.autograd.gradcheck(
        lambda g, n, b: reference.grounding_scores(g, n, mask, b, chunk_elements=chunk_elements),
        leaves,
    )


@pytest.mark.parametrize("valid", [None, [True, False, True, True], [False] * 4])
def test_matrix_infonce_gradcheck(valid):
    scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    valid = None if valid is None else torch.tensor(valid)
    assert torch.autograd.gradcheck(
        lambda s, a: matrix_infonce(s, a, valid=valid), [scores, scalar(5.0).requires_grad_()]
    )


def test_loss_gradcheck():
    groups, nouns, mask = problem(videos=4)
    leaves = [t.requires_grad_() for t in (groups, nouns, scalar(3.0), scalar(4.0))]
    assert torch.autograd.gradcheck(lambda g, n, b, s: grounding_loss(g, n, mask, b, s), leaves)


def test_one_group_gives_the_plain_dot_product():
    groups, nouns, _ = problem(groups=1, nouns=1)
    scores = grounding_scores(groups, nouns, torch.ones(4, 1, dtype=torch.bool), scalar(9.0))
    torch.testing.assert_close(scores, groups[:, 0] @ nouns[:, 0].T)


def test_beta_zero_is_the_mean_and_large_beta_is_the_maximum():
    groups, nouns, mask = problem()
    weights = reference.caption_weights(mask, torch.float64)
    dots = torch.einsum("ckd,vgd->vckg", nouns, groups)
    for beta, pooled, tolerance in ((0.0, dots.mean(-1), 1e-12), (60.0, dots.amax(-1), 0.02)):
        expected = torch.einsum("vck,ck->vc", pooled, weights)
        got = grounding_scores(groups, nouns, mask, scalar(beta))
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def test_beta_is_clamped_and_only_an_inward_gradient_passes():
    groups, nouns, mask = problem()
    inside = grounding_scores(groups, nouns, mask, scalar(60.0))
    for value, sign, passes in ((70.0, 1, False), (70.0, -1, True), (-2.0, 1, True)):
        beta = scalar(value).requires_grad_()
        scores = grounding_scores(groups, nouns, mask, beta)
        if value > 0:
            torch.testing.assert_close(scores, inside)
        # More beta means a larger score, so a loss of -score wants beta to grow.
        (-sign * scores.sum()).backward()
        assert (beta.grad != 0) == passes


def test_identical_rows_give_log_n():
    scores = torch.full((7, 7), 0.3, dtype=torch.float64)
    assert matrix_infonce(scores, scalar(20.0)).item() == pytest.approx(math.log(7))
    valid = torch.tensor([True, True, True, False, False, False, False])
    expected = (math.log(3) + math.log(7)) / 2
    got = matrix_infonce(scores, scalar(20.0), valid=valid)
    assert got.item() == pytest.approx(expected)
    same = unit(1, 3, 6).expand(5, 3, 6)
    mask = torch.ones(5, 2, dtype=torch.bool)
    loss = grounding_loss(same, unit(1, 2, 6).expand(5, 2, 6), mask, scalar(4.0), scalar(50.0))
    assert loss.item() == pytest.approx(math.log(5))


def test_a_lone_pair_gives_zero():
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = grounding_loss(unit(1, 3, 6), unit(1, 2, 6), mask, scalar(4.0), scalar(50.0))
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_loss_equals_a_loop_over_pairs():
    scores, scale = torch.randn(5, 5, dtype=torch.float64), 3.0
    valid = [True, False, True, True, False]
    total = 0.0
    for i in (i for i in range(5) if valid[i]):
        row = sum(math.exp(scale * scores[i, j]) for j in range(5) if valid[j])
        column = sum(math.exp(scale * scores[j, i]) for j in range(5))
        total += math.log(row) + math.log(column) - 2 * scale * scores[i, i].item()
    got = matrix_infonce(scores, scalar(scale), valid=torch.tensor(valid))
    assert got.item() == pytest.approx(total / 6)


def test_no_valid_caption_gives_a_zero_with_a_graph():
    groups, nouns, _ = problem(videos=4)
    leaves = [t.requires_grad_() for t in (groups, nouns, scalar(3.0), scalar(4.0))]
    mask = torch.zeros(4, 2, dtype=torch.bool)
    loss = grounding_loss(leaves[0], leaves[1], mask, leaves[2], leaves[3])
    loss.backward()
    assert loss.item() == 0
    assert all(torch.count_nonzero(leaf.grad) == 0 for leaf in leaves)


def test_padding_changes_nothing_even_if_it_is_nan():
    groups, nouns, mask = problem()
    padded_nouns = torch.cat([nouns, torch.full((4, 3, 6), float("nan"))], 1).requires_grad_()
    padded_mask = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], 1)
    expected = grounding_scores(groups, nouns, mask, scalar(5.0))
    got = grounding_scores(groups, padded_nouns, padded_mask, scalar(5.0))
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert torch.isfinite(padded_nouns.grad).all()
    assert torch.count_nonzero(padded_nouns.grad[~padded_mask]) == 0


def test_permutations_permute():
    groups, nouns, mask = problem()
    videos, captions = torch.randperm(5), torch.randperm(4)
    scores = grounding_scores(groups, nouns, mask, scalar(5.0))
    got = grounding_scores(
        groups[videos].flip(1), nouns[captions].flip(1), mask[captions].flip(1), scalar(5.0)
    )
    torch.testing.assert_close(got, scores[videos][:, captions])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_inputs_are_computed_in_float32_also_under_autocast(dtype):
    groups, nouns, mask = problem()
    inputs = [groups.to(dtype), nouns.to(dtype)]
    expected = grounding_scores(inputs[0].double(), inputs[1].double(), mask, scalar(5.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = grounding_scores(inputs[0], inputs[1], mask, torch.tensor(5.0))
        loss = matrix_infonce(got[:4], torch.tensor(90.0))
    assert got.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(got, expected.float(), rtol=0, atol=3e-7)
    exact = matrix_infonce(expected[:4], scalar(90.0))
    torch.testing.assert_close(loss, exact.float(), rtol=1e-5, atol=1e-5)


def test_saved_memory_does_not_grow_with_the_dot_products():
    videos, captions, chunk = 24, 24, 512
    groups, nouns = unit(videos, 8, 4).requires_grad_(), unit(captions, 4, 4).requires_grad_()
    mask = torch.ones(captions, 4, dtype=torch.bool)
    storages = {}

    def remember(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    with Largest(), torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        scores = reference.grounding_scores(
            groups, nouns, mask, scalar(5.0).requires_grad_(), chunk_elements=chunk
        )
        scores.sum().backward()
    dots = videos * 8 * captions * 4
    inputs = groups.numel() + nouns.numel() + scores.numel()
    assert sum(storages.values()) < 8 * 4 * inputs < 8 * dots / 2
    assert largest < max(4 * chunk, groups.numel() + nouns.numel(), captions * 4 * 8 + 1)


BAD = {
    "groups must be 3-dimensional": {"groups": torch.zeros(2, 3)},
    "groups must be floating point": {"groups": torch.zeros(2, 3, 4, dtype=torch.int64)},
    "same last size": {"groups": torch.zeros(2, 3, 5)},
    "at least one group": {"groups": torch.zeros(2, 0, 4)},
    r"noun_mask must be bool \[2, 2\], got torch.float32": {"noun_mask": torch.ones(2, 2)},
    r"got torch.bool \[2, 3\]": {"noun_mask": torch.ones(2, 3, dtype=torch.bool)},
    "beta must be a number or a 0-dim float tensor, got torch.float32": {"beta": torch.zeros(1)},
    "scale must be": {"scale": torch.tensor(3)},
    "2 captions and 3 videos": {"groups": torch.zeros(3, 3, 4)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    inputs = {
        "groups": torch.zeros(2, 3, 4),
        "nouns": torch.zeros(2, 2, 4),
        "noun_mask": torch.ones(2, 2, dtype=torch.bool),
        "beta": torch.tensor(1.0),
        "scale": torch.tensor(1.0),
    }
    with pytest.raises(ValueError, match=message):
        grounding_loss(**{**inputs, **BAD[message]})


def test_bad_matrix_is_named():
    scale = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"square float matrix, got torch.float32 \[2, 3\]"):
        matrix_infonce(torch.zeros(2, 3), scale)
    with pytest.raises(ValueError, match=r"valid must be bool \[2\]"):
        matrix_infonce(torch.zeros(2, 2), scale, valid=torch.ones(2))


def test_empty_batch_has_a_zero_loss():
    loss = grounding_loss(
        torch.zeros(0, 3, 4, requires_grad=True),
        torch.zeros(0, 2, 4),
        torch.zeros(0, 2, dtype=torch.bool),
        torch.tensor(1.0),
        torch.tensor(1.0),
    )
    loss.backward()
    assert loss.item() == 0


def test_registered_with_cases_inputs_and_cost():
    op = ops()["grounding"]
    inputs = op.make_inputs(op.cases["demo"], torch.float32, "cpu", 0)
    assert op.api(**inputs).item() == pytest.approx(op.reference(**inputs).item())
    cost = op.cost({"batch": 2, "groups": 3, "nouns": 5, "dim": 7}, torch.bfloat16)
    assert cost.forward_flops == 2 * 2 * 2 * 3 * 5 * 7
    assert cost.backward_flops == 3 * cost.forward_flops
    assert cost.forward_bytes == 2 * (3 + 5) * 7 * 2 + 10
