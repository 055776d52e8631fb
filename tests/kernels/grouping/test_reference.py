"""The reference of grouping: gradcheck, closed forms, noise, masks, refused input."""

import math

import pytest
import torch

from svilm_fast.core.philox import philox4x32, words_to_uniform
from svilm_fast.kernels import grouping, uniform
from svilm_fast.kernels.grouping.reference import _SAMPLES_AT_ONCE, gumbel_noise

B, L, C, G = 2, 7, 5, 3


def inputs(batch=B, length=L, width=C, groups=G, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "queries": normal(batch, groups, width),
        "tokens": normal(batch, length, width),
        "group_bias": normal(batch, groups),
    }


SEEDS = torch.arange(B) + 100
MASK = torch.rand(B, L, generator=torch.Generator().manual_seed(3)) < 0.7


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("temperature, eps", [(1.0, 1.0), (0.5, 0.1)])
def test_gradcheck_soft(mask, temperature, eps):
    data = [tensor.requires_grad_() for tensor in inputs().values()]

    def run(*args):
        return grouping(
            *args, mode="soft", token_mask=mask, temperature=temperature, eps=eps
        )[:2]  # fmt: skip

    assert torch.autograd.gradcheck(run, data)


@pytest.mark.parametrize("mode", ["hard", "gumbel"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_straight_through_gradient_is_the_written_one(mode, mask):
    """dA = h.x - h.pooled + c; dlogit = soft (dA - <soft, dA>) / tau."""
    data = {name: tensor.requires_grad_() for name, tensor in inputs().items()}
    tau, eps = 0.7, 1.0
    out = grouping(**data, mode=mode, seeds=SEEDS, token_mask=mask, temperature=tau, eps=eps)
    d_pooled, d_counts = torch.randn_like(out.pooled), torch.randn_like(out.counts)
    grads = torch.autograd.grad(
        (out.pooled * d_pooled).sum() + (out.counts * d_counts).sum(), list(data.values())
    )
    q, x, bias = (tensor.detach() for tensor in data.values())
    logits = torch.einsum("blc,bgc->blg", x, q) + bias[:, None]
    if mode == "gumbel":
        logits = logits + gumbel_noise(SEEDS, torch.arange(L).expand(B, L), G)
    soft = (logits / tau).softmax(-1)
    keep = torch.ones(B, L) if mask is None else mask.double()
    hard = torch.nn.functional.one_hot(logits.argmax(-1), G).double() * keep[..., None]
    n = hard.sum(1)
    pooled = torch.einsum("blg,blc->bgc", hard, x) / (n + eps)[..., None]
    h = d_pooled / (n + eps)[..., None]
    d_a = torch.einsum("bgc,blc->blg", h, x) - (h * pooled).sum(-1)[:, None] + d_counts[:, None]
    d_logit = soft * (d_a - (soft * d_a).sum(-1, keepdim=True)) / tau * keep[..., None]
    expected = (
        torch.einsum("blg,blc->bgc", d_logit, x),
        torch.einsum("blg,bgc->blc", hard, h) + torch.einsum("blg,bgc->blc", d_logit, q),
        d_logit.sum(1),
    )
    torch.testing.assert_close(out.pooled, pooled, rtol=0, atol=1e-13)
    torch.testing.assert_close(grads, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["hard", "gumbel", "soft"])
def test_one_group_gives_the_shrunk_mean(mode):
    data = inputs(groups=1)
    tokens = data["tokens"].requires_grad_()
    out = grouping(**data, mode=mode, seeds=SEEDS, eps=2.0)
    torch.testing.assert_close(out.pooled[:, 0], tokens.sum(1) / (L + 2.0), rtol=0, atol=1e-14)
    assert (out.counts == L).all()
    assert (out.index == 0).all()
    out.pooled.sum().backward()
    torch.testing.assert_close(tokens.grad, torch.full_like(tokens, 1 / (L + 2.0)))


def test_soft_with_equal_logits_spreads_evenly():
    data = inputs()
    out = grouping(torch.zeros_like(data["queries"]), data["tokens"], mode="soft")
    torch.testing.assert_close(out.counts, torch.full((B, G), L / G, dtype=torch.float64))
    mean = data["tokens"].sum(1, keepdim=True) / G / (L / G + 1)
    torch.testing.assert_close(out.pooled, mean.expand(B, G, C))


def test_bias_decides_and_an_empty_group_pools_to_zero_with_a_finite_gradient():
    data = inputs()
    bias = torch.tensor([0.0, 1e4, -1e4], dtype=torch.float64, requires_grad=True)
    queries = data["queries"].requires_grad_()
    out = grouping(queries, data["tokens"], bias, mode="hard")
    assert (out.index == 1).all()
    assert (out.pooled[:, [0, 2]] == 0).all()
    assert out.counts.tolist() == [[0, L, 0]] * B
    out.pooled.sum().backward()
    assert queries.grad.isfinite().all()
    assert bias.grad.isfinite().all()


def test_masked_tokens_do_not_exist():
    data = {name: tensor.requires_grad_() for name, tensor in inputs().items()}
    keep = torch.tensor([True, False, True, True, False, True, False]).expand(B, L)
    ids = torch.arange(L).expand(B, L)
    full = grouping(**data, mode="gumbel", seeds=SEEDS, token_mask=keep)
    kept = grouping(
        data["queries"],
        data["tokens"][:, keep[0]],
        data["group_bias"],
        mode="gumbel",
        seeds=SEEDS,
        token_ids=ids[:, keep[0]],
    )
    torch.testing.assert_close(full.pooled, kept.pooled)
    torch.testing.assert_close(full.counts, kept.counts)
    assert torch.equal(full.index[:, keep[0]], kept.index)
    assert (full.index[:, ~keep[0]] == -1).all()
    (gradient,) = torch.autograd.grad(full.pooled.sum() + full.counts.sum(), data["tokens"])
    assert (gradient[:, ~keep[0]] == 0).all()


def test_all_tokens_masked():
    data = inputs()
    out = grouping(**data, mode="hard", token_mask=torch.zeros(B, L, dtype=torch.bool))
    assert (out.pooled == 0).all()
    assert (out.counts == 0).all()


@pytest.mark.parametrize("groups", [1, 3, 4, 7, 32])
def test_noise_layout_is_the_documented_one(groups):
    seeds, ids = torch.tensor([5, -9]), torch.tensor([[0, 12, 3], [7, 7, 100000]])
    noise = gumbel_noise(seeds, ids, groups)
    assert noise.shape == (2, 3, groups)
    quads = math.ceil(groups / 4)
    for sample in range(2):
        for token in range(3):
            for group in range(groups):
                counter = ids[sample, token] * quads + group // 4
                word = philox4x32(seeds[sample], counter)[group % 4]
                u = max(float(words_to_uniform(word)), 2.0**-32)
                assert noise[sample, token, group] == pytest.approx(-math.log(-math.log(u)))


def test_noise_has_the_moments_of_gumbel():
    noise = gumbel_noise(torch.arange(8), torch.arange(2000).expand(8, -1), 5)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)


def test_a_zero_from_the_generator_gives_finite_noise(monkeypatch):
    from svilm_fast.kernels.grouping import reference

    monkeypatch.setattr(
        reference, "uniform4", lambda seeds, counters: torch.zeros(*counters.shape, 4)
    )
    assert gumbel_noise(torch.tensor([1]), torch.tensor([[0]]), 4).isfinite().all()


def test_noise_follows_seed_and_original_index_only():
    data = inputs(batch=3)
    seeds = torch.tensor([4, 5, 6])
    order = torch.tensor([2, 0, 1])
    out = grouping(**data, seeds=seeds)
    again = grouping(**{name: tensor[order] for name, tensor in data.items()}, seeds=seeds[order])
    torch.testing.assert_close(again.pooled, out.pooled[order])
    assert torch.equal(again.index, out.index[order])
    flipped = torch.arange(L - 1, -1, -1).expand(3, L)
    reversed_tokens = grouping(
        data["queries"], data["tokens"].flip(1), data["group_bias"], seeds=seeds, token_ids=flipped
    )
    assert torch.equal(reversed_tokens.index.flip(1), out.index)
    assert not torch.equal(grouping(**data, seeds=seeds + 1).index, out.index)


def test_gumbel_picks_groups_with_softmax_probability():
    length = 20000
    probability = torch.tensor([0.6, 0.3, 0.1])
    out = grouping(
        torch.zeros(1, 3, 1),
        torch.zeros(1, length, 1),
        probability.log(),
        seeds=torch.tensor([1]),
    )
    torch.testing.assert_close(out.counts[0] / length, probability, rtol=0, atol=0.015)


def test_many_samples_are_grouped_in_parts():
    batch = _SAMPLES_AT_ONCE + 3
    data = inputs(batch=batch)
    out = grouping(**data, mode="hard")
    last = grouping(**{name: tensor[-1:] for name, tensor in data.items()}, mode="hard")
    assert out.pooled.shape == (batch, G, C)
    torch.testing.assert_close(out.pooled[-1:], last.pooled)


def test_empty_batch():
    out = grouping(**inputs(batch=0), mode="hard")
    assert out.pooled.shape == (0, G, C)
    assert out.index.shape == (0, L)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_fp32(dtype):
    half = inputs(length=50, width=32, dtype=dtype)
    exact = {name: tensor.double() for name, tensor in half.items()}
    out, truth = (grouping(**data, mode="soft") for data in (half, exact))
    assert out.pooled.dtype == dtype
    assert out.counts.dtype == torch.float32
    torch.testing.assert_close(out.counts.double(), truth.counts, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.pooled, truth.pooled.to(dtype))


def test_autocast_takes_tokens_as_a_product_would():
    data = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = grouping(**data, mode="soft")
    expected = grouping(
        data["queries"].bfloat16(), data["tokens"].bfloat16(), data["group_bias"], mode="soft"
    )
    assert torch.equal(out.pooled, expected.pooled)
    assert torch.equal(out.counts, expected.counts)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": torch.zeros(B, L)}, r"tokens must be floating \[b, L, C\]"),
        ({"tokens": torch.zeros(B, L, C, dtype=torch.int64)}, "tokens must be floating"),
        ({"queries": torch.zeros(B, G, C + 1)}, r"queries must be \[2, G, 5\] to fit"),
        ({"queries": torch.zeros(B, 0, C)}, "at least one group"),
        ({"group_bias": torch.zeros(G + 1)}, r"group_bias must be \[3\], got"),
        ({"group_bias": torch.zeros(1, G)}, r"group_bias must be \[2, 3\], got"),
        ({"mode": "plain"}, "mode is 'plain'; expected one of gumbel, hard, soft"),
        ({"seeds": None}, "mode 'gumbel' needs seeds"),
        ({"seeds": torch.zeros(B)}, r"seeds must be torch.int64 \[2\], got torch.float32"),
        ({"token_ids": torch.zeros(L).long()}, r"token_ids must be torch.int64 \[2, 7\]"),
        ({"token_mask": torch.ones(B, L)}, r"token_mask must be torch.bool \[2, 7\]"),
        ({"temperature": 0.0}, "temperature must be positive and .*, got 0.0"),
        ({"eps": 0.0}, "eps must be positive and .*, got 0.0"),
        ({"temperature": math.nan}, "temperature must be positive and .*, got nan"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        grouping(**({**inputs(), "seeds": SEEDS} | change))
    assert "\n" not in str(error.value)


def test_uniform_is_the_first_word_of_the_noise():
    """One group uses one word of each counter: the same number as `uniform`."""
    seeds, ids = torch.tensor([5, 6]), torch.arange(9).expand(2, 9)
    u = uniform(seeds, ids).double()
    torch.testing.assert_close(gumbel_noise(seeds, ids, 1)[..., 0], -torch.log(-torch.log(u)))
