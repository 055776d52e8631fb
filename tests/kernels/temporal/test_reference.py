"""The references of the temporal ops: gradcheck, closed forms, masks, refused input."""

import math

import pytest
import torch
from torch.nn import functional as F

from svilm_fast.kernels import segment_pool, temporal_bce

B, T, D = 3, 6, 4
PASTE = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1]]).bool()
VALID = torch.tensor([[1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]).bool()


def segments(dtype=torch.float64, shape=(B, T, D), seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("mask", [None, VALID])
def test_gradcheck(loss, mask):
    z = segments().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: temporal_bce(z, PASTE, segment_mask=mask, temperature=0.7, loss=loss), (z,)
    )


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_equals_the_softmax_over_two_centres(loss):
    """The paper's form: a = softmax over [foreground, background] of <z, centre> / tau."""
    z, tau, total = segments(), 0.3, 0.0
    for sample in range(B):
        rows = z[sample][VALID[sample]]
        mask = PASTE[sample][VALID[sample]]
        centres = torch.stack([rows[mask].mean(0), rows[~mask].mean(0)])
        a = torch.softmax(rows @ centres.T / tau, dim=1)
        target = torch.stack([mask, ~mask], dim=1).double()
        if loss == "bce":
            total += F.binary_cross_entropy(a, target)
        else:
            total += F.mse_loss(a, target)
    actual = temporal_bce(z, PASTE, segment_mask=VALID, temperature=tau, loss=loss)
    torch.testing.assert_close(actual, total / B, rtol=1e-12, atol=0)


def test_identical_segments_give_log_two():
    z = torch.ones(B, T, D, dtype=torch.float64)
    assert temporal_bce(z, PASTE).item() == pytest.approx(math.log(2))
    assert temporal_bce(z, PASTE, loss="mse").item() == pytest.approx(0.25)


def test_orthogonal_sides_give_the_written_value():
    z = torch.zeros(1, T, 2, dtype=torch.float64)
    z[0, :, 0] = PASTE[0].double()
    z[0, :, 1] = (~PASTE[0]).double()
    expected = math.log1p(math.exp(-1 / 0.25))
    assert temporal_bce(z, PASTE[:1], temperature=0.25).item() == pytest.approx(expected)


@pytest.mark.parametrize("fill", [True, False])
def test_sample_of_one_side_gives_zero_and_no_gradient(fill):
    z = segments().requires_grad_()
    paste = PASTE.clone()
    paste[1] = fill
    others = temporal_bce(z[[0, 2]], paste[[0, 2]])
    value = temporal_bce(z, paste)
    torch.testing.assert_close(value, others * 2 / 3)
    value.backward()
    assert (z.grad[1] == 0).all()
    assert (z.grad[0] != 0).any()


def test_side_that_is_only_masked_out_counts_as_absent():
    z = segments().requires_grad_()
    value = temporal_bce(z[2:], PASTE[2:], segment_mask=~PASTE[2:])
    assert value.item() == 0
    value.backward()
    assert (z.grad == 0).all()


def test_masked_segment_may_hold_anything():
    z = segments()
    expected = temporal_bce(z, PASTE, segment_mask=VALID)
    z[~VALID] = float("nan")
    z.requires_grad_()
    value = temporal_bce(z, PASTE, segment_mask=VALID)
    assert torch.equal(value, expected)
    value.backward()
    assert (z.grad[~VALID] == 0).all()


def test_large_logits_stay_finite():
    z = (1e4 * segments()).requires_grad_()
    value = temporal_bce(z, PASTE, temperature=0.01)
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


def test_empty_batch_gives_a_connected_zero():
    z = segments(shape=(0, T, D)).requires_grad_()
    value = temporal_bce(z, torch.zeros(0, T, dtype=torch.bool))
    assert value.item() == 0
    value.backward()
    assert z.grad.shape == z.shape


@pytest.mark.parametrize(
    "dtype, result",
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2],
)
def test_result_type(dtype, result):
    value = temporal_bce(segments(dtype=torch.float64).to(dtype), PASTE)
    assert value.dtype == result
    assert value.dim() == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"segments": torch.zeros(B, T)}, r"segments must be floating \[b, T, D\]"),
        ({"paste_mask": PASTE.long()}, r"paste_mask must be torch.bool \[3, 6\], got torch.int64"),
        ({"segment_mask": VALID[:, :2]}, r"segment_mask must be torch.bool \[3, 6\]"),
        ({"temperature": -1.0}, "temperature must be positive and .*, got -1.0"),
        ({"loss": "l1"}, "loss is 'l1'; expected bce or mse"),
    ],
)
def test_bad_input_of_temporal_bce(change, message):
    with pytest.raises(ValueError, match=message):
        temporal_bce(**({"segments": segments(), "paste_mask": PASTE} | change))


INDEX = torch.tensor([[0, 0, 2, 2, 2, 3, -1, 9], [3, 3, 3, 3, 0, 0, 0, 2]])
KEEP = torch.tensor([[1, 0, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]]).bool()


def test_segment_pool_means_over_members():
    x = segments(shape=(2, 8, D)).requires_grad_()
    pooled, present = segment_pool(x, INDEX, 4, token_mask=KEEP)
    for sample in range(2):
        for segment in range(4):
            member = (INDEX[sample] == segment) & KEEP[sample]
            assert present[sample, segment] == member.any()
            expected = x[sample][member].mean(0) if member.any() else torch.zeros(D).double()
            torch.testing.assert_close(pooled[sample, segment], expected)
    assert torch.autograd.gradcheck(lambda x: segment_pool(x, INDEX, 4, token_mask=KEEP)[0], (x,))


def test_segment_pool_shares_one_index():
    x = segments(shape=(2, 8, D))
    one, _ = segment_pool(x, INDEX[0].int(), 4)
    each, _ = segment_pool(x, INDEX[:1].expand(2, 8), 4)
    assert torch.equal(one, each)


def test_segment_pool_half_precision_sums_in_fp32():
    x = torch.full((1, 4096, 1), 1.01, dtype=torch.bfloat16)
    pooled, _ = segment_pool(x, torch.zeros(4096, dtype=torch.int64), 1)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled[0, 0], x[0, 0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": torch.zeros(2, 8)}, r"tokens must be floating \[b, L, C\]"),
        ({"segment_index": INDEX.float()}, "segment_index must be int32 or int64, got torch.float"),
        ({"segment_index": INDEX[:, :3]}, r"segment_index must be torch.int64 \[2, 8\]"),
        ({"token_mask": KEEP.int()}, r"token_mask must be torch.bool \[2, 8\]"),
        ({"num_segments": 0}, "num_segments must be at least 1, got 0"),
    ],
)
def test_bad_input_of_segment_pool(change, message):
    with pytest.raises(ValueError, match=message):
        segment_pool(
            **({"tokens": torch.zeros(2, 8, D), "segment_index": INDEX, "num_segments": 4} | change)
        )
