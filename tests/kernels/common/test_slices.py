"""Gathers in slices: the same loss and gradients, every collective counted, planted bugs caught."""

from pathlib import Path

import pytest
import torch

from svilm_fast.kernels import slices
from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.grounding import grounding_loss, matrix_infonce, similarity_scores
from svilm_fast.kernels.infonce import infonce
from svilm_fast.kernels.slices import SlicePlan
from tests.bars import within

WORLD, BATCH, DIM, NOUNS = 4, 5, 6, 2
CASES = ["plain", "exclude", "share", "grounding", "maxsim"]
BUGS = {
    "slice starts at its own rows": ["exclude"],
    "own rows taken from the first rank": ["exclude", "share", "grounding"],
    # With every caption valid, the sum over columns does not know their order.
    "slices side by side": ["grounding"],
    "gradient to the next rank": ["plain", "exclude", "share", "grounding"],
    "own rows not cleared": ["plain", "exclude", "share", "grounding"],
    "every slice scattered to the first rows": ["plain", "exclude", "share", "grounding"],
    "slice read before it arrived": ["plain", "exclude", "share", "grounding"],
    "gradient read before it arrived": ["plain", "exclude", "share", "grounding"],
    "gradient sent before it is complete": ["plain", "exclude", "share", "grounding"],
    "last slice wins the videos' gradient": ["plain", "exclude", "share", "grounding"],
    "slices' sums under the largest": ["plain", "exclude", "share"],
    "shares of a slice taken for the whole": ["share"],
    "columns not in the order of ranks": ["grounding"],
}


@pytest.fixture(scope="module")
def ranks(run_ranks):
    return run_ranks(Path(__file__).with_name("slices_worker.py"), WORLD)


def single_process(case, ranks):
    """Loss and gradients (upstream 3) of the ranks' pairs in one process, in float64."""
    whole = [
        torch.cat(parts).double() if parts[0].dim() else parts[0].double()
        for parts in zip(*(rank["inputs"] for rank in ranks))
    ]
    if case in ("grounding", "maxsim"):
        groups, nouns, mask, beta, scale = whole
        mask = mask.bool()
        leaves = [leaf.requires_grad_() for leaf in (groups, nouns, beta, scale)]
        if case == "maxsim":
            scores = similarity_scores("maxsim", groups, nouns, mask, beta)
            loss = matrix_infonce(scores, scale, valid=mask.any(1))
        else:
            loss = grounding_loss(groups, nouns, mask, beta, scale)
    else:
        leaves = [leaf.requires_grad_() for leaf in whole]
        options = {}
        if case in ("exclude", "share"):
            ids = torch.cat([rank["ids"] for rank in ranks])
            options = {"pair_ids": ids, "pair_mode": case}
        loss = infonce(*leaves, **options)
    return loss.detach(), torch.autograd.grad(3.0 * loss, leaves, materialize_grads=True)


def error(case, ranks):
    """Largest error of the ranks' average against one process."""
    loss, gradients = single_process(case, ranks)
    world, errors = len(ranks), []
    for found, want in zip(zip(*(rank["gradients"] for rank in ranks)), gradients):
        whole = torch.cat(found) / world if found[0].dim() else torch.stack(found).mean(0)
        errors.append((whole.double() - want).abs().max())
    errors.append((torch.stack([rank["loss"] for rank in ranks]).double().mean() - loss).abs())
    return torch.stack(errors).max().item()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("world", range(1, WORLD + 1))
def test_average_over_ranks_is_the_global_batch(ranks, world, number, case):
    within(error(case, [rank["losses"][world, number, case] for rank in ranks[:world]]), 1e-10)


@pytest.mark.parametrize("case", ["plain", "exclude", "share", "grounding"])
def test_fused_path(ranks, case):
    if case == "grounding" and not interpreted():
        pytest.skip("the ranks run this kernel through the interpreter")
    within(error(case, [rank["fused"][case] for rank in ranks[:2]]), 1e-5)


def test_half_precision_adds_up_in_fp32(ranks):
    found = [rank["fused"]["bfloat16"] for rank in ranks[:2]]
    assert {g.dtype for rank in found for g in rank["gradients"][:2]} == {torch.bfloat16}
    within(error("plain", found), 2e-2)


@pytest.mark.parametrize("number", [1, 3])
def test_infonce_moves_texts_once_and_a_float_per_column(ranks, number):
    columns, rows = WORLD * BATCH, [5] if number == 1 else [2, 2, 1]
    check = ("all_gather_into_tensor", WORLD * 512, 1)
    gathers = [("all_gather_into_tensor", WORLD * r * DIM, 8) for r in rows]
    scatters = [("reduce_scatter_tensor", WORLD * r * DIM, 8) for r in reversed(rows)]
    sums = ("all_reduce", columns, 8)
    expected = [check, *gathers, sums, sums, sums, *scatters]
    assert [rank["traffic"][number, "plain"] for rank in ranks] == [expected] * WORLD


@pytest.mark.parametrize("number", [1, 3])
def test_grounding_moves_nouns_once_and_a_float_per_column(ranks, number):
    columns, rows = WORLD * BATCH, [5] if number == 1 else [2, 2, 1]
    check = ("all_gather_into_tensor", WORLD * 512, 1)
    masks = ("all_gather_into_tensor", columns * NOUNS, 1)
    gathers = [("all_gather_into_tensor", WORLD * r * NOUNS * DIM, 8) for r in rows]
    scatters = [("reduce_scatter_tensor", WORLD * r * NOUNS * DIM, 8) for r in reversed(rows)]
    sums = ("all_reduce", columns, 8)
    expected = [check, masks, *gathers, sums, sums, sums, *scatters]
    assert [rank["traffic"][number, "grounding"] for rank in ranks] == [expected] * WORLD


def test_own_rows_are_worked_on_while_the_others_travel(ranks):
    gather, scatter = "all_gather_into_tensor", "reduce_scatter_tensor"
    forward = [gather, gather, gather, gather, "scores", "scores", "scores"]
    sums = ["all_reduce"] * 3
    backward = ["gradient", scatter, "gradient", scatter, "gradient"]
    assert [rank["order"] for rank in ranks] == [forward + sums + backward] * WORLD


def test_slowness_alone_changes_nothing(ranks):
    for case in ("plain", "exclude", "share", "grounding"):
        assert error(case, [rank["bugs"]["only slow"][case] for rank in ranks[:3]]) < 1e-10


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_caught(ranks, bug):
    for case in BUGS[bug]:
        found = error(case, [rank["bugs"][bug][case] for rank in ranks[:3]])
        assert not found < 1e-10, case


def test_small_batches_travel_in_one_slice(monkeypatch):
    monkeypatch.setattr(slices.collectives, "world_size", lambda group: 8)

    def count(rows, dim):
        return slices.slice_count(torch.empty(rows, dim, dtype=torch.bfloat16, device="meta"), None)

    assert count(1024, 256) == 1
    assert count(8192, 512) == 4
    assert count(1, 1 << 30) == 1
    monkeypatch.setattr(slices.collectives, "world_size", lambda group: 1)
    assert count(65_536, 512) == 1


@pytest.mark.parametrize("slice_number", [1, 2, 3, 4])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_parts_hold_every_row_once(rank, slice_number):
    plan = SlicePlan(3, rank, 5, slice_number)
    everything = torch.arange(15)
    parts = plan.parts(everything)
    assert [len(part) for part in parts] == plan.part_sizes
    assert torch.equal(plan.in_rank_order(parts), everything)
    own = parts[0][plan.diagonal_offsets[0] :][:5]
    assert own.tolist() == list(range(5 * rank, 5 * rank + 5))
