"""Ranks compute the loss and the gradient of the global batch."""

import pytest
import torch

from svilm_fast.kernels.infonce import distributed_infonce, infonce
from tests.bars import rounding_bar, within

WORLDS = ["pair", "all"]
MODES = ["none", "exclude", "share"]
SCALE, UPSTREAM, FUSED_DIM = 9.0, 3.0, 16
# A probability is as exact as its logit, which is SCALE times a sum of FUSED_DIM products of unit
# rows. A gradient is the upstream gradient times probabilities, with weights of at most 1.
FUSED_BAR = rounding_bar(FUSED_DIM, SCALE * UPSTREAM)


def global_batch(ranks):
    videos, texts = (
        torch.cat([rank[side] for rank in ranks]).double().requires_grad_()
        for side in ("videos", "texts")
    )
    ids = None if ranks[0]["ids"] is None else torch.cat([rank["ids"] for rank in ranks])
    return videos, texts, torch.tensor(SCALE, dtype=torch.float64, requires_grad=True), ids


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path, bar", [("losses", 1e-12), ("fused", FUSED_BAR)])
def test_averages_over_ranks_are_those_of_the_global_batch(rank_results, world, mode, path, bar):
    ranks = [rank[path][mode] for rank in rank_results[world]]
    videos, texts, scale, ids = global_batch(ranks)
    pair_mode = "share" if mode == "share" else "exclude"
    loss = infonce(videos, texts, scale, pair_ids=ids, pair_mode=pair_mode)
    expected = torch.autograd.grad(UPSTREAM * loss, (videos, texts, scale))
    mean = torch.stack([rank["loss"] for rank in ranks]).mean()
    torch.testing.assert_close(mean.double(), loss.detach(), rtol=0, atol=bar)
    world_size, local = len(ranks), ranks[0]["videos"].shape[0]
    for place, rank in enumerate(ranks):
        own = slice(place * local, (place + 1) * local)
        for found, want in zip(rank["gradients"][:2], expected[:2]):
            # An embedding lives on one rank; averaging divides its gradient by W.
            torch.testing.assert_close(found.double() / world_size, want[own], rtol=0, atol=bar)
    mean_scale = torch.stack([rank["gradients"][2] for rank in ranks]).mean()
    # The scale is fp32 on every path, and so is its gradient.
    rounding = rounding_bar(1, abs(expected[2].item()))
    within(abs(mean_scale.item() - expected[2].item()), max(bar, rounding), "gradient of the scale")


@pytest.mark.parametrize("world", WORLDS)
def test_uneven_batches_get_the_same_error_everywhere(rank_results, world):
    messages = {rank["errors"]["uneven"] for rank in rank_results[world]}
    assert len(messages) == 1
    text = messages.pop()
    assert text.startswith("distributed_infonce: all ranks must make the same call, but ranks [0")
    assert "have a local batch of 4 (D 5" in text
    assert "ranks [1] have a local batch of 3 (D 5" in text
    assert text.endswith("and an equal local batch (drop the last, uneven one)")


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    "case, part",
    [
        ("one_bad_rank", "distributed_infonce: rank 1: infonce: expected videos [m, D]"),
        ("no_tensor", "distributed_infonce: rank 1: infonce: videos must be a tensor, got None"),
        ("two_lists", "rank 1: infonce: video_ids must be a tensor, got ("),
        ("huge", "rank 1: infonce: scale must be a number below 1e308"),
        ("gradients", "gradients of: texts); ranks [1"),
        ("ids", "ids present"),
        ("videos_dtype", "videos float64, texts float64"),
        ("scale_dtype", "scale float64"),
        ("scale", "scale 3.0"),
        ("pair_mode", "pair_mode share"),
        ("workspace", "workspace_bytes 101"),
        ("no_path", "rank 1: infonce: the fused path was requested, but D must be a multiple"),
        ("local_batch", "loader: all ranks must make the same call, but ranks [0] have a local"),
    ],
)
def test_other_differences_are_refused_everywhere(rank_results, world, case, part):
    messages = {rank["errors"][case] for rank in rank_results[world]}
    assert len(messages) == 1
    assert part in messages.pop()


@pytest.mark.parametrize("mode", MODES)
def test_one_process_is_the_plain_loss(rows, mode):
    videos, texts = rows(6, 4, 0).requires_grad_(), rows(6, 4, 1)
    options = {"pair_ids": torch.arange(6) // 2, "pair_mode": mode} if mode != "none" else {}
    found = distributed_infonce(videos, texts, 7.0, **options)
    assert torch.equal(found, infonce(videos, texts, 7.0, **options))
    assert found.requires_grad


def test_unpaired_sizes_are_refused_on_one_rank_too(rows):
    with pytest.raises(ValueError, match=r"pairs \[b, D\], got \[4, 3\] and \[5, 3\]"):
        distributed_infonce(rows(4, 3, 0), rows(5, 3, 1), 1.0)
