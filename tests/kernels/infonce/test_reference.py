"""The reference is the equation: gradcheck, closed forms, equality with eager float64."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from svilm_fast.kernels.infonce import infonce, infonce_partials
from svilm_fast.kernels.infonce.options import InfonceOptions
from svilm_fast.kernels.infonce.reference import partials


def leaves(rows, m, n, dim, scale=5.0):
    videos = rows(m, dim, 0).requires_grad_()
    texts = rows(n, dim, 1).requires_grad_()
    return videos, texts, torch.tensor(scale, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("ids", [None, (0, 1, 0, 2, 1)])
@pytest.mark.parametrize("mode", ["exclude", "share"])
def test_gradcheck_of_the_loss(rows, mode, ids):
    inputs = leaves(rows, 5, 5, 3)
    pair_ids = None if ids is None else torch.tensor(ids)
    torch.autograd.gradcheck(
        lambda v, t, s: infonce(v, t, s, pair_ids=pair_ids, pair_mode=mode, workspace_bytes=400),
        inputs,
    )


@pytest.mark.parametrize("offset", [-2, 0, 3, 9])
def test_gradcheck_of_partial_sums(rows, offset):
    torch.autograd.gradcheck(
        lambda v, t, s: partials(v, t, s, InfonceOptions(offset, workspace_bytes=700)),
        leaves(rows, 4, 6, 3),
    )


def test_gradcheck_where_a_column_has_nothing_to_sum(rows):
    ids = torch.zeros(3, dtype=torch.int64)

    def finite_sums(v, t, s):
        found = partials(v, t, s, InfonceOptions(1, (ids, ids)))
        return found[0][:2].sum() + found[1][1:].sum() + found[2].sum()

    found = partials(*leaves(rows, 3, 3, 2), InfonceOptions(1, (ids, ids)))
    assert found[0][2] == found[1][0] == -math.inf
    torch.autograd.gradcheck(finite_sums, leaves(rows, 3, 3, 2))


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_identical_rows_give_log_of_the_batch(rows, batch):
    same = rows(1, 8, 0).expand(batch, 8)
    assert infonce(same, same, 20.0).item() == pytest.approx(math.log(batch), abs=1e-12)


def test_orthogonal_pairs_are_analytic():
    batch, scale = 6, 3.0
    eye = torch.eye(batch, dtype=torch.float64)
    expected = math.log(math.exp(scale) + batch - 1) - scale
    assert infonce(eye, eye, scale).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("workspace", [1, 900, None])
def test_equals_cross_entropy(rows, workspace):
    videos, texts, scale = leaves(rows, 17, 17, 5, scale=14.0)
    logits, labels = scale * videos @ texts.T, torch.arange(17)
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    found = infonce(videos, texts, scale, workspace_bytes=workspace)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    wanted = torch.autograd.grad(expected, (videos, texts, scale))
    for got, want in zip(torch.autograd.grad(3 * found, (videos, texts, scale)), wanted):
        torch.testing.assert_close(got, 3 * want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("m, n, offset", [(5, 9, 0), (5, 9, 3), (9, 5, -3), (6, 6, 2), (6, 6, -4)])
def test_rectangles_equal_the_oracle(rows, oracle, m, n, offset):
    inputs = leaves(rows, m, n, 4)
    found = infonce(*inputs, diagonal_offset=offset, workspace_bytes=500)
    expected = oracle(*inputs, offset=offset)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    for got, want in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_blocks_combine_to_the_whole(rows):
    videos, texts, scale = leaves(rows, 8, 6, 4)
    whole = infonce_partials(videos, texts, scale)
    top = infonce_partials(videos[:3], texts, scale)
    bottom = infonce_partials(videos[3:], texts, scale, diagonal_offset=3)
    torch.testing.assert_close(torch.cat((top.row_lse, bottom.row_lse)), whole.row_lse)
    columns = torch.logaddexp(top.column_lse, bottom.column_lse)
    torch.testing.assert_close(columns, whole.column_lse)
    torch.testing.assert_close(torch.cat((top.positives, bottom.positives)), whole.positives)


def test_joint_permutation_permutes_the_gradient(rows):
    videos, texts, scale = leaves(rows, 11, 11, 4)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    gradient = torch.autograd.grad(infonce(videos, texts, scale), (videos, texts, scale))
    permuted = infonce(videos[order], texts[order], scale)
    found = torch.autograd.grad(permuted, (videos, texts, scale))
    for got, want in zip(found, gradient):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_swapping_the_modalities_keeps_the_loss(rows):
    videos, texts, scale = leaves(rows, 11, 11, 4)
    torch.testing.assert_close(
        infonce(videos, texts, scale), infonce(texts, videos, scale), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_computed_in_float32(rows, oracle, dtype):
    videos, texts = (rows(33, 16, seed, dtype).requires_grad_() for seed in (0, 1))
    loss = infonce(videos, texts, 14.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), oracle(videos, texts, 14.0), rtol=0, atol=2e-6)
    assert torch.autograd.grad(loss, videos)[0].dtype == dtype


def test_autocast_changes_nothing(rows):
    videos, texts = (rows(9, 16, seed, torch.float32).requires_grad_() for seed in (0, 1))
    plain = infonce(videos, texts, 14.0)
    gradient = torch.autograd.grad(plain, videos)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = infonce(videos, texts, 14.0)
        assert torch.equal(torch.autograd.grad(cast, videos)[0], gradient)
    assert torch.equal(cast, plain)


def test_works_without_gradients(rows):
    videos, texts, scale = leaves(rows, 5, 5, 3)
    with torch.no_grad():
        silent = infonce(videos, texts, scale)
    assert not silent.requires_grad
    assert torch.equal(silent, infonce(videos, texts, scale).detach())
    frozen = infonce(videos, texts.detach(), scale)
    assert torch.autograd.grad(frozen, texts, allow_unused=True)[0] is None
