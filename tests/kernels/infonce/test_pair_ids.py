"""Equal ids: left out of the softmax, or sharing the target."""

import pytest
import torch

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.infonce import infonce
from svilm_fast.kernels.infonce.pairs import dense_ids, share_weights


def inputs(rows, batch=8):
    videos, texts = rows(batch, 4, 0).requires_grad_(), rows(batch, 4, 1).requires_grad_()
    return videos, texts, torch.tensor(6.0, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("mode", ["exclude", "share"])
@pytest.mark.parametrize("ids", [(0, 1, 2, 0, 1, 2, 0, 7), (5, 5, 5, 5, 5, 5, 5, 5)])
def test_equals_the_oracle(rows, oracle, mode, ids):
    tensors, pair_ids = inputs(rows), torch.tensor(ids)
    found = infonce(*tensors, pair_ids=pair_ids, pair_mode=mode, workspace_bytes=700)
    expected = oracle(*tensors, video_ids=pair_ids, text_ids=pair_ids, pair_mode=mode)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    for got, want in zip(
        torch.autograd.grad(found, tensors), torch.autograd.grad(expected, tensors)
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", ["exclude", "share"])
def test_distinct_ids_change_nothing(rows, mode):
    videos, texts, scale = inputs(rows)
    ids = torch.arange(8).flip(0) * 2**40
    torch.testing.assert_close(
        infonce(videos, texts, scale, pair_ids=ids, pair_mode=mode), infonce(videos, texts, scale)
    )


def test_excluding_everything_leaves_a_loss_of_zero(rows):
    videos, texts, scale = inputs(rows)
    loss = infonce(videos, texts, scale, pair_ids=torch.zeros(8, dtype=torch.int64))
    assert abs(loss.item()) < 1e-14
    assert torch.autograd.grad(loss, videos)[0].abs().max() < 1e-14


def test_a_shared_target_pulls_to_every_caption_of_the_class(rows):
    videos, texts, scale = inputs(rows, 2)
    ids = torch.zeros(2, dtype=torch.int64)
    logits = scale * videos @ texts.T
    by_hand = (
        torch.logsumexp(logits, 1).mean() + torch.logsumexp(logits, 0).mean()
    ) / 2 - logits.mean()
    found = infonce(videos, texts, scale, pair_ids=ids, pair_mode="share")
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-14)


TWO_LISTS = {
    "other counts": ((0, 0, 1, 2, 2, 2, 3, 4), (0, 1, 1, 1, 2, 3, 3, 4)),
    "lines without a partner": ((0, 0, 1, 9, 2, 8, 3, 4), (0, 1, 7, 1, 2, 3, 6, 6)),
    "no partner at all": ((0, 1, 2, 3, 4, 5, 6, 7), (8, 9, 10, 11, 12, 13, 14, 15)),
    "equal lists": ((0, 1, 2, 0, 1, 2, 0, 7), (0, 1, 2, 0, 1, 2, 0, 7)),
}


@pytest.mark.parametrize("ids", TWO_LISTS.values(), ids=TWO_LISTS)
def test_targets_follow_the_ids_of_both_lists(rows, oracle, ids):
    tensors = inputs(rows)
    video_ids, text_ids = map(torch.tensor, ids)
    found = infonce(
        *tensors, pair_ids=(video_ids, text_ids), pair_mode="share", workspace_bytes=700
    )
    expected = oracle(*tensors, video_ids=video_ids, text_ids=text_ids, pair_mode="share")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    for got, want in zip(
        torch.autograd.grad(found, tensors), torch.autograd.grad(expected, tensors)
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


@pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["random", "confident"])
def test_fused_targets_follow_the_ids_of_both_lists(check, regime, dtype, name):
    batch = 80
    index = torch.arange(batch)
    video_ids, text_ids = index // 3, (index * 2 // 3) + index % 2 * 40
    check(
        *regime(name, batch, 32, dtype),
        options={"pair_ids": (video_ids, text_ids), "pair_mode": "share"},
        naive={"video_ids": video_ids, "text_ids": text_ids, "pair_mode": "share"},
    )


def test_rectangles_take_ids_of_both_sides(rows, oracle):
    videos, texts = rows(4, 5, 0), rows(7, 5, 1)
    video_ids, text_ids = torch.tensor([0, 1, 0, 3]), torch.tensor([9, 9, 0, 1, 0, 3, 3])
    found = infonce(videos, texts, 5.0, diagonal_offset=2, pair_ids=(video_ids, text_ids))
    expected = oracle(videos, texts, 5.0, offset=2, video_ids=video_ids, text_ids=text_ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_dense_ids_are_equal_exactly_where_the_ids_are():
    left = torch.tensor([2**62, -5, 7, 2**32 + 7])
    right = torch.tensor([7, 2**62, 8])
    dense_left, dense_right = dense_ids(left, right)
    assert dense_left.dtype == torch.int32
    same = left[:, None] == right
    assert torch.equal(dense_left[:, None] == dense_right, same)


def test_share_weights_count_texts():
    weights = share_weights(torch.tensor([3, 4, 5]), torch.tensor([4, 3, 4, 4]), torch.float32)
    assert weights.tolist() == pytest.approx([1.0, 1 / 3, 0.0])
