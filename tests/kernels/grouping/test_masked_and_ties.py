"""One assignment for everything that is returned; masked tokens may hold anything."""

import dataclasses
import importlib

import pytest
import torch

from svilm_fast.kernels import grouping

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HIDDEN = [float("nan"), float("inf"), -3e4]


@pytest.mark.parametrize(
    "mode, hidden",
    [("gumbel", HIDDEN[0]), ("gumbel", HIDDEN[1]), ("gumbel", HIDDEN[2]), ("hard", HIDDEN[0]),
     ("soft", HIDDEN[0]), ("soft", HIDDEN[1])],
)  # fmt: skip
@pytest.mark.parametrize(
    "plan", [(), (("own_blocks", 1), ("slabs", 3), ("prefetch", 0)), (("prefetch", 1),)], ids=str
)
def test_masked_tokens_may_hold_anything(check_grouping, hidden, mode, plan):
    width = 192 if plan and plan[0][0] == "own_blocks" else 80
    regime = check_grouping.Regime(
        mode=mode, masked=True, dropped=True, hidden=hidden, width=width, plan=plan
    )
    check_grouping(regime)


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_the_reference_leaves_masked_tokens_out(check_grouping, mode, hidden):
    regime = check_grouping.Regime(mode=mode, masked=True, hidden=hidden)
    arguments, d_pooled, d_counts = check_grouping.make(regime)
    clean = dict(arguments)
    clean["tokens"] = arguments["tokens"].masked_fill(~arguments["token_mask"][..., None], 0)
    found = check_grouping.run(arguments, "reference", d_pooled, d_counts)
    wanted = check_grouping.run(clean, "reference", d_pooled, d_counts)
    assert torch.equal(found[0].pooled, wanted[0].pooled)
    assert torch.equal(found[0].counts, wanted[0].counts)
    for name, gradient in found[1].items():
        assert gradient.isfinite().all(), name
    assert not found[1]["tokens"][~arguments["token_mask"]].any()


@pytest.mark.parametrize("slabs", [2, 3, 4])
def test_all_slabs_pool_by_the_index_in_near_ties(monkeypatch, slabs):
    """Two groups whose logits are one number, summed over the columns in another order."""
    function = importlib.import_module("svilm_fast.kernels.grouping.fused.function")
    planned = function._plan
    own = (("own_blocks", 1), ("slabs", slabs), ("prefetch", 0), ("splits", 1), ("resident", False))

    def plan(*args, **kwargs):
        return dataclasses.replace(planned(*args, **kwargs), **dict(own), chunk=256)

    monkeypatch.setattr(function, "_plan", plan)
    block = planned(torch.empty(1, 2, 64 * slabs), torch.empty(1, 256, 64 * slabs), False)
    width = block.block_width * slabs
    generator = torch.Generator().manual_seed(0)
    part = torch.randn(1, 256, block.block_width, generator=generator)
    parts = torch.randn(slabs, block.block_width, generator=generator)
    tokens = part.repeat(1, 1, slabs).to(DEVICE)
    queries = torch.stack([parts.roll(shift, 0).flatten() for shift in range(slabs)])[None]
    out = grouping(queries.to(DEVICE), tokens, mode="hard", backend="fused")
    share = torch.nn.functional.one_hot(out.index.long(), slabs).double()
    pooled = share.mT @ tokens.double() / (share.sum(1) + 1)[..., None]
    assert torch.equal(out.counts.double(), share.sum(1))
    assert out.pooled.shape == (1, slabs, width)
    torch.testing.assert_close(out.pooled.double(), pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.005, 0.001])
def test_a_small_temperature_keeps_the_gradient_of_half_precision(check_grouping, temperature):
    """Times 1/tau the gradient of the assignment is beyond fp16's range before the products."""
    width, groups = 256, 3
    generator = torch.Generator().manual_seed(0)
    tokens = 4 + torch.randn(1, 24, width, generator=generator)
    # Logits a temperature apart: every group keeps a share.
    queries = temperature * torch.randn(1, groups, width, generator=generator) / width**0.5
    arguments = {
        "tokens": tokens.half().to(DEVICE),
        "queries": queries.half().to(DEVICE),
        "group_bias": None,
        "mode": "soft",
        "temperature": temperature,
    }
    d_pooled = torch.tensor([0.01, -0.01, 0.005], device=DEVICE)[None, :, None].expand(1, -1, width)
    d_counts = torch.zeros(1, groups, device=DEVICE)
    _, wanted = check_grouping.run(arguments, "reference", d_pooled, d_counts, torch.float64)
    _, found = check_grouping.run(arguments, "fused", d_pooled, d_counts)
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        error = (gradient.double() - wanted[name]).norm() / wanted[name].norm()
        assert error < 2e-3, name


def test_token_ids_beyond_their_range_are_refused():
    tokens, queries = torch.randn(1, 4, 16), torch.randn(1, 2, 16)
    seeds = torch.zeros(1, dtype=torch.int64)
    for bad in (-1, 2**27, 2**40):
        ids = torch.tensor([[0, 1, 2, bad]])
        for backend in ("reference", "fused"):
            with pytest.raises(ValueError, match=r"token_ids must lie in \[0, 2\^27\)"):
                grouping(queries, tokens, seeds=seeds, token_ids=ids, backend=backend)
            kept = torch.ones(1, 4, dtype=torch.bool)
            with pytest.raises(ValueError, match=f"got {bad}"):
                grouping(
                    queries, tokens, seeds=seeds, token_ids=ids, token_mask=kept, backend=backend
                )


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("hidden", [-1, 2**27, 2**63 - 1, -(2**63)])
def test_ids_that_nobody_reads_may_hold_anything(backend, hidden):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 4, 16, generator=generator).to(DEVICE)
    queries = torch.randn(1, 2, 16, generator=generator).to(DEVICE)
    ids = torch.tensor([[7, 1, 2, 3]], device=DEVICE)
    padded = torch.tensor([[7, 1, 2, hidden]], device=DEVICE)
    masked = {"token_mask": torch.tensor([[True, True, True, False]], device=DEVICE)}
    seeds = {"seeds": torch.zeros(1, dtype=torch.int64, device=DEVICE)}
    for settings in (seeds | masked, {"mode": "hard"}, {"mode": "soft"}):
        found = grouping(queries, tokens, token_ids=padded, backend=backend, **settings)
        wanted = grouping(queries, tokens, token_ids=ids, backend=backend, **settings)
        for one, other in zip(found, wanted):
            assert torch.equal(one, other)
