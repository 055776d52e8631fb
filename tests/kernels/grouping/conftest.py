"""The numerics protocol of grouping: one call against the float64 oracle, with absolute bars."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass

import pytest
import torch

from svilm_fast.kernels import grouping
from svilm_fast.kernels.grouping.reference import GroupingOutput, gumbel_noise
from tests.bars import within
from tests.kernels.gluon_bugs import comparing
from tests.kernels.grouping import gluon_calls

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative root mean square error of an output of this type; the rounding of the output alone.
BARS = {torch.float32: 2e-5, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# The interpreter truncates where it should round to bf16, in operands and in outputs.
INTERPRETED_BF16_BAR = 2.0**-6


@dataclass(frozen=True)
class Regime:
    """One call of the protocol.

    `plan` overrides how it is cut into tiles; `hidden` is what masked tokens hold.
    """

    mode: str = "gumbel"
    dtype: torch.dtype = torch.float32
    batch: int = 2
    length: int = 40
    width: int = 48
    groups: int = 6
    temperature: float = 1.0
    eps: float = 1.0
    masked: bool = False
    hidden: float | None = None
    dropped: bool = False
    bias: str | None = "sample"
    sharpness: float = 1.0
    upstream: float = 1.0
    seed: int = 0
    plan: tuple[tuple[str, int], ...] = ()


def make(regime: Regime) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Arguments of `grouping` and non-uniform upstream gradients of pooled and counts."""
    generator = torch.Generator().manual_seed(regime.seed)
    b, length, c, g = regime.batch, regime.length, regime.width, regime.groups

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    arguments = {
        "queries": normal(b, g, c) * regime.sharpness * c**-0.5,
        "tokens": normal(b, length, c) + 0.5 * normal(b, 1, c),
        "group_bias": {"sample": 0.3 * normal(b, g), "shared": 0.3 * normal(g), None: None}[
            regime.bias
        ],
    }
    for name in ("queries", "tokens"):
        arguments[name] = arguments[name].to(regime.dtype)
    keep = torch.rand(b, length, generator=generator) < 0.8
    if regime.masked and regime.hidden is not None:
        arguments["tokens"][~keep] = regime.hidden
    order = torch.rand(b, 3 * length, generator=generator).argsort(1)[:, :length]
    settings = {
        "mode": regime.mode,
        "temperature": regime.temperature,
        "eps": regime.eps,
        "seeds": torch.arange(b) * 1013 + 2**40 + regime.seed,
        "token_mask": keep if regime.masked else None,
        "token_ids": order if regime.dropped else None,
    }
    weights = 1 + 0.5 * normal(b, g, c) * torch.linspace(0.1, 3, g)[:, None]
    on_device = {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in (arguments | settings).items()
    }
    d_counts = normal(b, g).to(DEVICE)
    return on_device, weights.to(DEVICE) * regime.upstream, d_counts * regime.upstream


def differentiable(arguments: dict, dtype: torch.dtype | None = None) -> dict:
    """A copy whose queries, tokens and bias are leaves (in `dtype`)."""
    copy = dict(arguments)
    for name in ("queries", "tokens", "group_bias"):
        if copy[name] is not None:
            leaf = copy[name].detach()
            copy[name] = (leaf if dtype is None else leaf.to(dtype)).clone().requires_grad_()
    return copy


def run(arguments, backend, d_pooled, d_counts, dtype=None):
    """Outputs, and gradients by name."""
    call = differentiable(arguments, dtype)
    out = grouping(**call, backend=backend)
    # Straight from the outputs, so that the upstream gradients arrive in the outputs' types.
    names = [name for name in ("queries", "tokens", "group_bias") if call[name] is not None]
    gradients = torch.autograd.grad(
        (out.pooled, out.counts),
        [call[name] for name in names],
        (d_pooled.to(out.pooled.dtype), d_counts.to(out.counts.dtype)),
    )
    return out, dict(zip(names, gradients))


def smallest_gap(arguments: dict) -> float:
    """The least difference of a token's best and second best noisy logit."""
    x, q = arguments["tokens"].double(), arguments["queries"].double()
    logits = x @ q.mT
    if arguments["group_bias"] is not None:
        logits = logits + arguments["group_bias"].double().expand(q.shape[:2])[:, None]
    if arguments["mode"] == "gumbel":
        ids = arguments["token_ids"]
        if ids is None:
            ids = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        logits = logits + gumbel_noise(arguments["seeds"], ids, q.shape[1])
    if q.shape[1] == 1:
        return 1.0
    if arguments["token_mask"] is not None:
        logits = logits[arguments["token_mask"]]
    best = logits.topk(2, dim=-1).values
    return float((best[..., 0] - best[..., 1]).min())


def assert_close(name: str, actual: torch.Tensor, truth: torch.Tensor, bar: float) -> None:
    """Root mean square and largest error against float64, both absolute bars."""
    assert actual.shape == truth.shape, name
    assert actual.isfinite().all(), f"{name} is not finite"
    error = (actual.double() - truth).abs()
    size = truth.square().mean().sqrt()
    unit = torch.finfo(actual.dtype).eps
    # Below the normal numbers of a type, its rounding is absolute.
    floor = unit * torch.finfo(actual.dtype).tiny
    within(error.square().mean().sqrt(), bar * size + floor, f"{name}, root mean square")
    largest = truth.abs().amax(-1, keepdim=True)
    limit = 4 * unit * truth.abs() + 2.0**-7 * largest + 16 * bar * size
    within(error, limit + floor, name)


@pytest.fixture
def check_grouping(monkeypatch, poisoned_memory):
    """`check(Regime(...))`: the fused call obeys the protocol, or AssertionError."""
    function = importlib.import_module("svilm_fast.kernels.grouping.fused.function")
    planned = function._plan

    def check(regime: Regime) -> None:
        monkeypatch.setattr(
            function,
            "_plan",
            lambda *args, **kwargs: dataclasses.replace(
                planned(*args, **kwargs), **dict(regime.plan)
            ),
        )
        arguments, d_pooled, d_counts = make(regime)
        # The oracle sees the upstream gradient that the kernel sees.
        d_pooled = d_pooled.to(regime.dtype)
        truth, true_gradients = run(arguments, "reference", d_pooled, d_counts, torch.float64)
        out, gradients = run(arguments, "fused", d_pooled, d_counts)
        assert out.pooled.dtype == regime.dtype
        assert out.counts.dtype == torch.float32
        bar = BARS[regime.dtype]
        if regime.dtype == torch.bfloat16 and DEVICE == "cpu":
            bar = INTERPRETED_BF16_BAR
        assert smallest_gap(arguments) > 1e-5, "a tie: choose another seed for this regime"
        assert torch.equal(out.index, truth.index)
        if regime.mode != "soft":
            assert torch.equal(out.counts.double(), truth.counts)
        assert_close("counts", out.counts, truth.counts, 2e-5)
        assert_close("pooled", out.pooled, truth.pooled, bar)
        # Backward rounds two factors of its products to the tokens' type (the upstream share and
        # the gradient of the logits), and sums of both signs cancel: a margin of 2.
        margin = 1 if regime.dtype == torch.float32 else 2
        for name, gradient in gradients.items():
            assert_close(name, gradient, true_gradients[name], margin * bar)

    check.run, check.make, check.Regime = run, make, Regime
    return check


@pytest.fixture
def check_gluon(monkeypatch):
    """`check(regime, seed, module, stages)`: the interpreted Gluon kernel obeys the protocol.

    Returns the logs of its programs. Slices have 16 columns.
    """
    from svilm_fast.kernels.grouping.fused import gluon_forward

    def check(regime, seed=0, module=gluon_forward, stages=5):
        monkeypatch.setattr(module, "SLICE", 16)
        monkeypatch.setattr(module, "STAGES", stages)
        regime = Regime(**regime)
        arguments, _, _ = make(regime)
        pooled, counts, index, logs = gluon_calls.run_kernel(module, arguments, regime.plan, seed)
        assert smallest_gap(arguments) > 1e-5, "a tie: choose another seed for this regime"
        truth = grouping(**differentiable(arguments, torch.float64), backend="reference")
        bar = BARS[torch.float32 if pooled.dtype == torch.float32 else regime.dtype]
        with comparing():
            assert torch.equal(index, truth.index), "index"
            assert torch.equal(counts.double(), truth.counts), "counts"
            assert_close("pooled", pooled, truth.pooled.detach(), bar)
        return logs

    return check


@pytest.fixture
def check_gluon_backward(monkeypatch):
    """`check(regime, seed, module, stages)`: the interpreted kernel's gradients obey the protocol.

    `stages` are those of both rings. Returns the logs of its programs. Slices have 16 columns.
    """
    from svilm_fast.kernels.grouping.fused import gluon_backward

    def check(regime, seed=0, module=gluon_backward, stages=(5, 3)):
        monkeypatch.setattr(module, "SLICE", 16)
        monkeypatch.setattr(module, "STAGES", stages[0])
        monkeypatch.setattr(module, "AGAIN_STAGES", stages[1])
        regime = Regime(**regime)
        arguments, *upstream = make(regime)
        upstream[0] = upstream[0].to(regime.dtype)
        out, truth = run(arguments, "reference", *upstream, torch.float64)
        # Forward's outputs as the kernels of forward write them.
        given = GroupingOutput(
            out.pooled.detach().to(regime.dtype), out.counts.detach().float(), out.index
        )
        gradients, logs = gluon_calls.run_backward(
            module, arguments, upstream, given, regime.plan, seed
        )
        with comparing():
            for name, gradient in gradients.items():
                if arguments[name] is None:
                    continue
                if name == "group_bias" and arguments[name].dim() == 1:
                    gradient = gradient.sum(0)
                assert_close(name, gradient, truth[name], 2 * BARS[regime.dtype])
        return logs

    return check
