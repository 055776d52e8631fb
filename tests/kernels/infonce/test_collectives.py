"""Collectives over ranks: values and gradients of the sum of the ranks' losses."""

import pytest
import torch

from svilm_fast.kernels import collectives

WORLDS = ["pair", "all"]


@pytest.fixture
def found(rank_results, world):
    return [rank["collectives"] for rank in rank_results[world]]


def stacked(found, key):
    return torch.stack([rank[key] for rank in found])


@pytest.mark.parametrize("world", WORLDS)
def test_gather_is_the_ranks_in_order(found):
    whole = torch.cat([rank["local"] for rank in found])
    assert all(torch.equal(rank["gathered"], whole) for rank in found)
    assert all(rank["ids"].tolist() == [i + 2**40 for i in range(len(found))] for rank in found)


@pytest.mark.parametrize("world", WORLDS)
def test_gradient_of_gather_sums_over_ranks(found):
    total = stacked(found, "weights").sum(0)
    for place, rank in enumerate(found):
        torch.testing.assert_close(rank["gather_gradient"], total[2 * place : 2 * place + 2])


@pytest.mark.parametrize("world", WORLDS)
def test_half_gradients_come_back_in_half(found):
    for rank in found:
        assert rank["half_gradient"].dtype == torch.float16
        assert rank["half_gradient"].tolist() == [len(found)] * 2


@pytest.mark.parametrize("world", WORLDS)
def test_all_reduce_sum_and_its_gradient(found):
    total, gradient = stacked(found, "local").sum(0), stacked(found, "weights")[:, :2].sum(0)
    for rank in found:
        torch.testing.assert_close(rank["total"], total)
        torch.testing.assert_close(rank["total_gradient"], gradient)


@pytest.mark.parametrize("world", WORLDS)
def test_maximum(found):
    assert all(torch.equal(rank["maximum"], stacked(found, "local").amax(0)) for rank in found)


@pytest.mark.parametrize("world", WORLDS)
def test_logsumexp_and_its_gradient(found):
    local = 1000 * stacked(found, "local").requires_grad_()
    expected = torch.logsumexp(local, 0).flatten()
    gradient = 1000 * len(found) * torch.autograd.grad(expected.sum(), local)[0]
    for place, rank in enumerate(found):
        torch.testing.assert_close(rank["lse"][:-1], expected.detach())
        assert rank["lse"][-1] == -torch.inf
        torch.testing.assert_close(rank["lse_gradient"], gradient[place])


def test_one_process_is_one_rank():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert (collectives.world_size(), collectives.rank()) == (1, 0)
    assert collectives.gather(tensor) is tensor
    assert collectives.all_reduce_sum(tensor) is tensor
    assert collectives.all_reduce_logsumexp(tensor) is tensor
    assert torch.equal(collectives.all_reduce_max(tensor), tensor.detach())
    collectives.check_equal_calls("loader", "a local batch of 3", device=tensor.device)
    with pytest.raises(ValueError, match="loader: too small"):
        collectives.check_equal_calls("loader", "", device=tensor.device, problem="too small")
