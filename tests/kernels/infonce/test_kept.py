"""Where the matrix fits, the reference keeps the gradient of the logits: the same as by chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import cross_entropy

from svilm_fast.bench.memory import peak_extra_bytes
from svilm_fast.kernels.infonce import infonce
from svilm_fast.kernels.infonce.block import _SHARP
from svilm_fast.kernels.infonce.options import InfonceOptions
from svilm_fast.kernels.infonce.reference import loss

# Scales at which exponentials are taken of the logits themselves, of their distance from the
# largest, and of their distances from each log-sum, because one is 40 below the largest.
NARROW, SHARP, WIDE = 5.0, -35.0, 300.0
SHAPES = [(6, 6, 0), (5, 9, 3), (9, 5, -3), (6, 6, 2), (3, 4, -2), (1, 1, 0)]
IDS = torch.tensor([0, 1, 0, 2, 1, 3])


def gradients(inputs: list[Tensor], options: InfonceOptions, needs=(1, 1, 1), function=loss):
    """The loss, and gradients of three times the loss."""
    leaves = [x.clone().requires_grad_(bool(need)) for x, need in zip(inputs, needs, strict=True)]
    found = function(*leaves, options)
    taken = [x for x in leaves if x.requires_grad]
    return [found.detach(), *torch.autograd.grad(3 * found, taken)]


def workspaces(*, offset: int = 0, ids=None, mode="exclude") -> list[InfonceOptions]:
    """Options with which everything fits, and with which a chunk has one row."""
    return [InfonceOptions(offset, ids, mode, size) for size in (1 << 26, 1)]


def inputs(rows, m, n, scale, dtype=torch.float64):
    return [rows(m, 8, 0, dtype), rows(n, 8, 1, dtype), torch.tensor(scale, dtype=dtype)]


def depth(made: list[Tensor]) -> float:
    logits = made[2] * made[0] @ made[1].T
    return float(logits.max() - min(logits.logsumexp(1).min(), logits.logsumexp(0).min()))


@pytest.mark.parametrize("scale", [0.0, -3.0, NARROW, SHARP, WIDE])
@pytest.mark.parametrize(("m", "n", "offset"), SHAPES)
def test_kept_and_computed_again_are_equal(rows, m, n, offset, scale):
    made = inputs(rows, m, n, scale)
    kept, again = (gradients(made, options) for options in workspaces(offset=offset))
    for one, other in zip(kept, again, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, NARROW, SHARP, WIDE])
@pytest.mark.parametrize("mode", ["exclude", "share"])
def test_pair_ids(rows, mode, scale):
    made = inputs(rows, 6, 6, scale)
    kept, again = (gradients(made, each) for each in workspaces(ids=(IDS, IDS), mode=mode))
    for one, other in zip(kept, again, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def test_lines_without_a_pair_left_to_sum(rows):
    """All texts of the last video are excluded, and all videos of the first text."""
    ids = torch.zeros(3, dtype=torch.int64)
    made = inputs(rows, 3, 3, NARROW)
    kept, again = (gradients(made, each) for each in workspaces(offset=1, ids=(ids, ids.clone())))
    for one, other in zip(kept, again, strict=True):
        assert torch.isfinite(one).all()
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def test_the_three_kinds_of_exponentials_occur(rows):
    assert depth(inputs(rows, 6, 6, SHARP)) < 40 < depth(inputs(rows, 6, 6, WIDE))
    assert abs(NARROW) < _SHARP < abs(SHARP)


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
def test_each_gradient_alone(rows, needs):
    made = inputs(rows, 7, 5, NARROW)
    every = gradients(made, InfonceOptions())
    alone = gradients(made, InfonceOptions(), needs)
    expected = every[:1] + [x for x, need in zip(every[1:], needs, strict=True) if need]
    for one, other in zip(alone, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [0.0, NARROW, SHARP, WIDE])
def test_gradcheck(rows, scale):
    made = [x.requires_grad_() for x in inputs(rows, 4, 6, scale)]
    assert torch.autograd.gradcheck(lambda v, t, s: loss(v, t, s, InfonceOptions(1)), made)


@pytest.mark.parametrize(("scale", "noise"), [(14.3, 0.3), (19.0, 0.3), (100.0, 1.5)])
def test_float32_is_as_close_to_float64_as_plain_cross_entropy(rows, scale, noise):
    """Partners are alike, so losses are small and sums of a row lie far below the largest logit."""
    videos = rows(300, 32, 0)
    texts = torch.nn.functional.normalize(videos + noise * rows(300, 32, 1), dim=1)
    made = [videos, texts, torch.tensor(scale, dtype=torch.float64)]
    labels = torch.arange(300)

    def plain(videos: Tensor, texts: Tensor, scale: Tensor, _: InfonceOptions) -> Tensor:
        logits = scale * videos @ texts.T
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2

    def errors(function) -> list[float]:
        found = gradients([x.float() for x in made], InfonceOptions(), function=function)
        pairs = zip(found, exact, strict=True)
        return [float((x.double() - y).abs().max() / y.abs().max()) for x, y in pairs]

    exact = gradients(made, InfonceOptions(), function=plain)
    for one, other in zip(errors(loss), errors(plain), strict=True):
        assert one < 4 * other + 1e-7


@pytest.mark.parametrize("upstream", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("scale", [0.0, NARROW])
def test_upstream_gradients_at_the_ends(rows, upstream, scale):
    """0 gives 0, and what is not finite reaches the gradients, as by chunks."""
    found = []
    for options in workspaces():
        made = [x.requires_grad_() for x in inputs(rows, 6, 6, scale)]
        value = torch.tensor(upstream, dtype=torch.float64)
        found.append(torch.autograd.grad(loss(*made, options), made, value))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
        assert upstream != 0.0 or not one.any()


def test_forward_mode_is_refused_without_a_graph_too(rows):
    """Nothing may take the scale as a number and drop its derivative."""
    made = inputs(rows, 6, 6, NARROW)
    with torch.no_grad(), forward_ad.dual_level():
        for place in range(3):
            given = [*made]
            given[place] = forward_ad.make_dual(made[place], torch.ones_like(made[place]))
            with pytest.raises(NotImplementedError, match="forward AD"):
                loss(*given, InfonceOptions())


def test_what_is_kept_takes_at_most_half_of_the_workspace(rows):
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    made = [x.requires_grad_() for x in inputs(rows, 128, 128, NARROW, torch.float32)]
    for workspace in (2 * 128 * 128 * 4, 2 * 128 * 128 * 4 - 1):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = infonce(*made, workspace_bytes=workspace)
        loss.backward()
        assert (max(saved.values()) == workspace // 2) == (workspace % 2 == 0)


@pytest.mark.parametrize("scale", [NARROW, SHARP, WIDE])
@pytest.mark.parametrize(("mode", "matrices"), [(None, 2), ("exclude", 4), ("share", 4)])
@pytest.mark.parametrize("need", [False, True])
def test_what_is_live_fits_the_workspace(rows, scale, mode, matrices, need):
    pairs, matrix = 512, 4 * 512 * 512
    ids = None if mode is None else torch.arange(pairs) % 400
    made = inputs(rows, pairs, pairs, scale, torch.float32)
    leaves = [x.requires_grad_(need) for x in made]
    options = {} if mode is None else {"pair_ids": ids, "pair_mode": mode}

    def call() -> None:
        loss = infonce(*leaves, workspace_bytes=matrices * matrix, **options)
        if need:
            loss.backward()

    vectors = 16 * pairs * 8 * 4  # inputs and their gradients, log-sums and the like
    assert matrix <= peak_extra_bytes(call, torch.device("cpu")) <= matrices * matrix + vectors


def test_without_gradients_nothing_is_kept(rows):
    with torch.no_grad():
        loss = infonce(*inputs(rows, 16, 16, NARROW), workspace_bytes=1 << 20)
    again = infonce(*inputs(rows, 16, 16, NARROW), workspace_bytes=1 << 10)
    assert loss.item() == pytest.approx(again.item(), rel=1e-13)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_reach_the_loss(rows, value):
    made = inputs(rows, 6, 6, NARROW, torch.float32)
    made[0][2, 3] = value
    found = gradients(made, InfonceOptions())
    assert not found[0].isfinite()
    assert not found[1].isfinite().all()


def test_the_gradient_may_be_taken_twice(rows):
    """Backward must not change what forward kept."""
    made = [x.requires_grad_() for x in inputs(rows, 6, 6, NARROW)]
    loss = infonce(*made, workspace_bytes=1 << 20)
    first = torch.autograd.grad(loss, made, retain_graph=True)
    again = torch.autograd.grad(loss, made)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
