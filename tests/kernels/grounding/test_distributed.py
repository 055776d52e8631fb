"""Ranks compute the loss and the gradient of the global batch."""

from functools import partial
from pathlib import Path

import pytest
import torch

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.grounding import (
    distributed_grounding_loss,
    grounding_loss,
    matrix_infonce,
    similarity_scores,
)
from tests.bars import rounding_bar

WORLDS = ["pair", "all"]
# A score sums 2 nouns x 3 groups of products of width 5. Beta 6 multiplies their error once more,
# then come the scale and the upstream gradient.
FUSED_BAR = rounding_bar(5 * 3 * 2, 9.0 * 3.0 * (1 + 6.0))


@pytest.fixture(scope="module")
def rank_results(run_ranks):
    """What three gloo ranks found: for `all` (3 ranks) and `pair` (2), one dict per rank."""
    saved = run_ranks(
        Path(__file__).with_name("rank_worker.py"), 3, "fused" if interpreted() else "reference"
    )
    return {
        "all": [results["all"] for results in saved],
        "pair": [results["pair"] for results in saved if "pair" in results],
    }


def global_batch(ranks):
    parts = zip(*(rank["inputs"] for rank in ranks))
    groups, nouns, mask, beta, scale = (
        torch.cat(part).double() if part[0].dim() else part[0].double() for part in parts
    )
    leaves = [t.requires_grad_() for t in (groups, nouns, beta, scale)]
    return leaves[0], leaves[1], mask.bool(), leaves[2], leaves[3]


def compare(ranks, loss_of, tolerance):
    """The ranks' mean loss and gradients against one process."""
    batch = global_batch(ranks)
    loss = loss_of(*batch)
    leaves = [t for t in batch if t.requires_grad]
    expected = torch.autograd.grad(3.0 * loss, leaves, materialize_grads=True)
    options = {"rtol": 0, "atol": tolerance, "check_dtype": False}
    mean = torch.stack([rank["loss"] for rank in ranks]).mean()
    torch.testing.assert_close(mean, loss.detach(), **options)
    world_size, local = len(ranks), ranks[0]["inputs"][0].shape[0]
    for place, rank in enumerate(ranks):
        own = slice(place * local, (place + 1) * local)
        for found, want in zip(rank["gradients"][:2], expected[:2]):
            # An embedding lives on one rank; averaging divides its gradient by W.
            torch.testing.assert_close(found / world_size, want[own], **options)
    for position in (2, 3):
        mean = torch.stack([rank["gradients"][position] for rank in ranks]).mean()
        torch.testing.assert_close(mean, expected[position], **options)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", ["uneven", "one_rank_without", "none", "small_workspace"])
def test_averages_over_ranks_are_those_of_the_global_batch(rank_results, world, case):
    compare([rank["losses"][case] for rank in rank_results[world]], grounding_loss, 1e-10)


@pytest.mark.parametrize("world", WORLDS)
def test_another_similarity(rank_results, world):
    def loss_of(groups, nouns, mask, beta, scale):
        scores = similarity_scores("maxsim", groups, nouns, mask, beta)
        return matrix_infonce(scores, scale, valid=mask.any(1))

    ranks = [rank["losses"]["maxsim"] for rank in rank_results[world]]
    assert all(torch.count_nonzero(rank["gradients"][2]) == 0 for rank in ranks)
    compare(ranks, loss_of, 1e-10)


@pytest.mark.skipif(not interpreted(), reason="the ranks run kernels through the interpreter")
@pytest.mark.parametrize("world", WORLDS)
def test_fused_scores(rank_results, world):
    compare([rank["losses"]["fused"] for rank in rank_results[world]], grounding_loss, FUSED_BAR)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    "case, part",
    [
        ("uneven", "all ranks must make the same call, but ranks [0"),
        ("one_bad_rank", "rank 1: grounding: noun_mask must be bool [4, 2], got torch.bool [2, 2]"),
        ("no_tensor", "rank 1: grounding: groups must be a tensor, got None"),
        ("huge", "must be a number below 1e308"),
        ("gradients", "gradients of: groups, beta, scale)"),
        ("groups_dtype", "groups float32, nouns float64"),
        ("nouns_dtype", "groups float64, nouns float32"),
        ("beta_dtype", "beta float32"),
        ("beta", "beta 2.0"),
        ("scale_dtype", "scale float32"),
        ("scale", "scale 6.0"),
        ("workspace", "workspace_bytes 101"),
        ("no_path", "rank 1: grounding: the fused path was requested, but float64 is computed"),
    ],
)
def test_differences_are_refused_everywhere(rank_results, world, case, part):
    messages = {rank["errors"][case] for rank in rank_results[world]}
    assert len(messages) == 1
    assert part in messages.pop()


def test_one_process_is_the_plain_loss():
    groups, nouns = torch.randn(4, 3, 5), torch.randn(4, 2, 5)
    mask = torch.tensor([[True, True], [False, False], [True, False], [True, True]])
    expected = grounding_loss(groups, nouns, mask, 0.5, 2.0)
    assert torch.equal(distributed_grounding_loss(groups, nouns, mask, 0.5, 2.0), expected)
    # Another similarity goes through the sums over ranks, here over one.
    softmax = partial(similarity_scores, "softmax")
    found = distributed_grounding_loss(groups, nouns, mask, 0.5, 2.0, scores=softmax)
    torch.testing.assert_close(found, expected)


def test_one_matrix_of_scores_is_saved():
    batch = 64
    groups, nouns = torch.randn(batch, 3, 5), torch.randn(batch, 2, 5)
    mask, scale = torch.ones(batch, 2, dtype=torch.bool), torch.tensor(9.0, requires_grad=True)
    scores = torch.randn(batch, batch, requires_grad=True)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = distributed_grounding_loss(
            groups, nouns, mask, 1.0, scale, scores=lambda *_: scores.clone()
        )
    loss.backward()
    assert scores.grad is not None
    assert 4 * batch**2 <= sum(saved.values()) < 4 * batch**2 + 64 * batch


def test_unpaired_batches_are_refused_on_one_rank_too():
    mask = torch.ones(4, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="got 4 captions and 3 videos"):
        distributed_grounding_loss(torch.zeros(3, 3, 5), torch.zeros(4, 2, 5), mask, 1.0, 1.0)
