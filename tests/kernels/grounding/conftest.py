"""The numerics protocol of grounding: regimes, a float64 oracle and absolute bars."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.kernels.grounding import grounding_loss, grounding_scores, matrix_infonce
from tests.bars import note, rounding_bar
from tests.kernels.grounding import gluon_blocks


@dataclasses.dataclass(frozen=True)
class Regime:
    """A problem: sizes and what is special about it."""

    videos: int = 5
    captions: int | None = None
    groups: int = 8
    nouns: int = 2
    dim: int = 16
    beta: float = 10.0
    scale: float = 20.0
    counts: tuple[int, ...] = (2, 1, 0)
    dtype: torch.dtype = torch.float16
    kind: str = "random"
    workspace_bytes: int | None = None


# name -> regime; every one is a ragged size on some axis.
REGIMES = {
    "plain": Regime(),
    "padded groups": Regime(groups=12, dim=48, videos=13, nouns=3, counts=(3, 0, 1, 2)),
    "one group": Regime(groups=1, nouns=1, counts=(1,)),
    "64 groups": Regime(groups=64, videos=4, dim=80, counts=(1, 2)),
    "many nouns": Regime(nouns=5, counts=(5, 0, 3, 1), groups=3, videos=30),
    "lone pair": Regime(videos=1, counts=(2,)),
    "two tiles each way": Regime(videos=70, groups=2, dim=32, counts=(2, 2, 0, 1)),
    "nothing valid": Regime(counts=(0,)),
    "flat": Regime(beta=0.0, scale=1.0),
    "sharp": Regime(beta=60.0, scale=100.0, groups=32, videos=9),
    "beta beyond": Regime(beta=75.0, videos=9),
    "saturated": Regime(scale=1000.0, kind="confident", counts=(2, 1)),
    "confident": Regime(scale=6.0, beta=60.0, kind="confident", videos=20, counts=(2, 1)),
    "duplicates": Regime(kind="duplicates", videos=6, counts=(2,)),
    "zero vectors": Regime(kind="zero", videos=6),
    "long vectors": Regime(kind="long", beta=60.0, videos=9),
    "chunks": Regime(videos=37, groups=16, workspace_bytes=1, counts=(2, 1, 0)),
    "float32": Regime(dtype=torch.float32, videos=11, groups=9, dim=24, nouns=3, counts=(3, 0, 1)),
    "float32 one group": Regime(dtype=torch.float32, groups=1, nouns=1, counts=(1,)),
    "float32 chunks": Regime(dtype=torch.float32, videos=21, workspace_bytes=1),
    "bfloat16": Regime(dtype=torch.bfloat16, videos=11, groups=9, dim=24),
    "more captions": Regime(videos=3, captions=40, groups=5),
    "more videos": Regime(videos=40, captions=3, groups=5),
}
OUTPUT_BARS = {torch.float16: 2**-11, torch.bfloat16: 2**-7, torch.float32: 2e-5}


def make(regime, seed=0):
    """groups, nouns, noun_mask, beta, scale of a regime; values are exact in its dtype."""
    generator = torch.Generator().manual_seed(seed)
    captions = regime.captions or regime.videos

    def unit(*shape):
        return normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)

    groups = unit(regime.videos, regime.groups, regime.dim)
    nouns = unit(captions, regime.nouns, regime.dim)
    if regime.kind == "confident":
        nouns = groups[:, :1].expand_as(nouns) + 0.05 * nouns
        nouns = normalize(nouns, dim=-1)
    if regime.kind == "duplicates":
        groups, nouns = groups[:1].repeat(6, 1, 1), nouns[:1].repeat(6, 1, 1)
    if regime.kind == "zero":
        groups[1], nouns[0, 0] = 0, 0
    if regime.kind == "long":
        groups, nouns = groups * 1.15, nouns * 1.15
    cycle = [regime.counts[i % len(regime.counts)] for i in range(captions)]
    mask = torch.arange(regime.nouns) < torch.tensor(cycle)[:, None]
    beta, scale = (torch.tensor(v, dtype=torch.float64) for v in (regime.beta, regime.scale))
    return groups.to(regime.dtype), nouns.to(regime.dtype), mask, beta, scale


def naive_scores(groups, nouns, mask, beta):
    """Pools region vectors; shares no method with reference or kernels."""
    nouns = nouns * mask[:, :, None]
    dots = torch.einsum("ckd,vgd->vckg", nouns, groups)
    regions = torch.einsum("vckg,vgd->vckd", torch.softmax(beta.clamp(0, 60) * dots, -1), groups)
    weights = mask.double() / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("vckd,ckd,ck->vc", regions, nouns, weights)


def naive_loss(scores, scale, valid):
    """Loops over valid pairs; log_softmax instead of sums."""
    kept = valid.nonzero()[:, 0]
    if not len(kept):
        return (scores * 0).sum() * scale
    rows = torch.log_softmax(scale * scores[kept][:, kept], 1).diagonal()
    columns = torch.log_softmax(scale * scores[:, kept], 0)[kept].diagonal()
    return -(rows.mean() + columns.mean()) / 2


def kept(error, bar):
    """Whether an error is within its bar, recorded."""
    note(float(error), float(bar))
    return error <= bar


def relative_error(found, expected):
    error = (found.double() - expected).norm()
    return (error / expected.norm().clamp(min=1e-30)).item() if error > 0 else 0.0


def _gradient_failures(label, found, expected, dtype, terms=0.0):
    """`terms`: size of an element's terms where all cancel, down to their rounding to `dtype`."""
    bar = OUTPUT_BARS[dtype]
    # What no output of this dtype can hold, and what is left where everything cancels.
    tiny = torch.finfo(dtype).smallest_normal + rounding_bar(1, terms, dtype)
    tiny *= expected.numel() ** 0.5
    if not torch.isfinite(found).all():
        yield f"{label} is not finite"
    elif not kept((found.double() - expected).norm(), bar * expected.norm() + tiny):
        yield (
            f"{label}: relative error {relative_error(found, expected):.1e} > {bar:.1e}, "
            f"{(found.double() - expected).norm():.1e} in all"
        )
    rows = expected.abs().amax(-1, keepdim=True)
    excess = (found.double() - expected).abs() - 4 * bar * expected.abs() - 2**-7 * rows - tiny
    if excess.max() > 0:
        yield f"{label}: an element is off by {excess.max():.1e} too much"


def _scalar_failures(label, found, expected, magnitude, bar=2e-5):
    error = abs(found.double().item() - expected.item())
    if not kept(error, bar * max(magnitude, 1e-6)):
        yield f"{label}: {found.item()} instead of {expected.item()} (magnitude {magnitude:.1e})"


def score_failures(regime):
    """Scores and their gradients under a non-uniform upstream gradient."""
    groups, nouns, mask, beta, _ = make(regime)
    generator = torch.Generator().manual_seed(1)
    shape = (groups.shape[0], nouns.shape[0])
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64).exp() * 1e-3
    upstream *= torch.randint(-1, 2, shape, generator=generator)

    exact = [t.double().requires_grad_() for t in (groups, nouns, beta)]
    expected = naive_scores(exact[0], exact[1], mask, exact[2])
    # d S / d beta is a variance: the size of the sum's terms is their sum under |upstream|.
    size = torch.autograd.grad(
        (expected * upstream.abs()).sum(), exact[2], retain_graph=True, materialize_grads=True
    )
    wanted = torch.autograd.grad((expected * upstream).sum(), exact)

    leaves = [groups.clone(), nouns.clone(), beta.float()]
    leaves[1][~mask] = float("nan")
    for leaf in leaves:
        leaf.requires_grad_()
    options = {"workspace_bytes": regime.workspace_bytes, "backend": "fused"}
    found = grounding_scores(leaves[0], leaves[1], mask, leaves[2], **options)
    gradients = torch.autograd.grad((found * upstream.float()).sum(), leaves)
    error = (found.double() - expected).abs().max().item()
    if not kept(error, 2e-6):
        yield f"scores: absolute error {error:.1e}"
    for label, got, want in zip(("groups", "nouns"), gradients, wanted):
        yield from _gradient_failures(f"scores, {label} gradient", got, want, regime.dtype)
    if regime.beta <= 60:
        yield from _scalar_failures("scores, beta", gradients[2], wanted[2], size[0].item())


def loss_failures(regime):
    """The loss and its four gradients, times an upstream gradient that is not one."""
    groups, nouns, mask, beta, scale = make(regime)
    exact = [t.double().requires_grad_() for t in (groups, nouns, beta, scale)]
    scores = naive_scores(exact[0], exact[1], mask, exact[2])
    expected = naive_loss(scores, exact[3], mask.any(1))
    wanted = torch.autograd.grad(0.7 * expected, exact, retain_graph=True, materialize_grads=True)
    by_score = torch.autograd.grad(0.7 * expected, scores, retain_graph=True)[0]
    beta_size = torch.autograd.grad(
        (scores * by_score.abs()).sum(), exact[2], materialize_grads=True
    )[0]

    leaves = [groups.clone(), nouns.clone(), beta.float(), scale.float()]
    leaves[1][~mask] = float("nan")
    for leaf in leaves:
        leaf.requires_grad_()
    found = grounding_loss(
        leaves[0],
        leaves[1],
        mask,
        leaves[2],
        leaves[3],
        workspace_bytes=regime.workspace_bytes,
        backend="fused",
    )
    gradients = torch.autograd.grad(0.7 * found, leaves)
    size = max(1.0, regime.scale / 20)
    yield from _scalar_failures("loss", found.detach(), expected.detach(), size)
    # Equal pairs: every softmax is flat, and the gradient is 0 but for rounding.
    terms = 0.7 * regime.scale / (2 * regime.videos) if regime.kind == "duplicates" else 0.0
    for label, got, want in zip(("groups", "nouns"), gradients, wanted):
        yield from _gradient_failures(f"loss, {label} gradient", got, want, regime.dtype, terms)
    if regime.beta <= 60:
        bound = beta_size.item() + 1e-2 * by_score.abs().sum().item()
        yield from _scalar_failures("loss, beta", gradients[2], wanted[2], bound)
    size = (by_score * scores).abs().sum().item() / regime.scale
    yield from _scalar_failures("loss, scale", gradients[3], wanted[3], size + 1e-2)


def matrix_failures(size, scale, valid_every=0, spread=1.0, offset=0.0, seed=0):
    """`matrix_infonce` alone, on scores of any range."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, size, generator=generator) * spread + offset
    valid = torch.ones(size, dtype=torch.bool)
    if valid_every:
        valid[::valid_every] = False
    exact = [scores.double().requires_grad_(), torch.tensor(scale).double().requires_grad_()]
    expected = naive_loss(*exact, valid)
    wanted = torch.autograd.grad(0.7 * expected, exact)
    leaves = [scores.requires_grad_(), torch.tensor(scale).requires_grad_()]
    found = matrix_infonce(*leaves, valid=valid if valid_every else None, backend="fused")
    gradients = torch.autograd.grad(0.7 * found, leaves)
    largest = scale * scores.detach().abs().max().item()
    # A logit itself is only known to half a unit in its last place.
    bar = 2e-6 * max(10.0, largest)
    yield from _scalar_failures("matrix loss", found.detach(), expected.detach(), 1.0, bar)
    if not kept(relative_error(gradients[0], wanted[0]), bar):
        yield f"matrix gradient: {relative_error(gradients[0], wanted[0]):.1e}"
    reach = (wanted[0] * exact[0]).abs().sum().item() / scale
    yield from _scalar_failures("matrix scale", gradients[1], wanted[1], reach + 0.1, bar)


MATRICES = {
    "small": {"size": 7, "scale": 10.0, "valid_every": 3},
    "lone": {"size": 1, "scale": 10.0},
    "three blocks": {"size": 150, "scale": 30.0, "valid_every": 4},
    "many partials": {"size": 300, "scale": 5.0, "spread": 2.0},
    "shifted": {"size": 9, "scale": 10.0, "offset": 100.0},
    "wide": {"size": 65, "scale": 100.0, "spread": 10.0, "valid_every": 2},
}


def regime_failures(regime):
    """Every failure of the scores and, where pairs are square, of the loss."""
    yield from score_failures(regime)
    if regime.captions is None:
        yield from loss_failures(regime)


def protocol(names=None):
    """Every failure of the fused path, one regime after the other; nothing if it is right."""
    for name, regime in REGIMES.items():
        if names is None or name in names:
            for failure in regime_failures(regime):
                yield f"{name}: {failure}"
    for name, options in MATRICES.items():
        if names is None or f"matrix {name}" in names:
            for failure in matrix_failures(**options):
                yield f"matrix {name}: {failure}"


@pytest.fixture
def numerics():
    return protocol


@pytest.fixture
def failures_at():
    """`failures_at(dim, ...)`: every failure of a plain regime with these fields."""
    return lambda **fields: list(regime_failures(Regime(**fields)))


@pytest.fixture
def check_gradient(monkeypatch):
    """`check_gradient(block, seed, module, stages)`: the interpreted Gluon kernel and float64."""
    from svilm_fast.kernels.grounding.fused import gluon_gradient

    def check(block, seed=0, module=gluon_gradient, stages=3):
        return gluon_blocks.check_gradient(monkeypatch, block, seed, module, stages)

    return check


def pytest_generate_tests(metafunc):
    if "regime_name" in metafunc.fixturenames:
        names = [*REGIMES, *(f"matrix {name}" for name in MATRICES)]
        metafunc.parametrize("regime_name", names)
