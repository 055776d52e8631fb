"""Other packages' losses over ranks: the same loss and gradients on the same embeddings.

They run where the packages can be found, for instance in a folder named by PYTHONPATH; see the
op's README for what they showed.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from svilm_fast.kernels.backend import interpreted

WORLD = 3
PACKAGES = [name for name in ("open_clip", "inf_cl") if importlib.util.find_spec(name)]


def needs(name):
    return pytest.mark.skipif(name not in PACKAGES, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def ranks(run_ranks):
    return run_ranks(Path(__file__).with_name("peers_worker.py"), WORLD, *PACKAGES)


def pairs(ranks, name):
    """The ranks' losses, embedding gradients and the mean gradient of the scale: (peer's, ours)."""
    peer, ours = ([rank[key] for rank in ranks] for key in (name, "ours"))
    losses = [torch.stack([rank["loss"] for rank in side]) for side in (peer, ours)]
    gradients = [
        [torch.cat(parts) for parts in zip(*(r["gradients"][:2] for r in side))]
        for side in (peer, ours)
    ]
    scales = [torch.stack([rank["gradients"][2] for rank in side]).mean() for side in (peer, ours)]
    return losses, gradients, scales


def largest(found, want):
    return max((a - b).abs().max().item() for a, b in zip(found, want))


@needs("open_clip")
def test_open_clip_local_loss(ranks):
    losses, gradients, scales = pairs(ranks, "open_clip True True")
    # The same terms on each rank; the scale's gradient is split over ranks another way.
    assert largest(*losses) < 1e-10
    assert largest(*gradients) < 1e-10
    assert abs(scales[0] - scales[1]) < 1e-10


@needs("open_clip")
def test_open_clip_global_loss(ranks):
    losses, gradients, scales = pairs(ranks, "open_clip False True")
    # Every rank computes the whole loss; gradients of the sum over ranks are the same.
    assert largest(losses[0], losses[1].mean().expand(WORLD)) < 1e-10
    assert largest(*gradients) < 1e-10
    assert abs(scales[0] - scales[1]) < 1e-10


@needs("open_clip")
def test_open_clip_without_gradient_of_the_gather(ranks):
    _, gradients, scales = pairs(ranks, "open_clip False False")
    # Averaging over ranks leaves 1/W of the encoders' gradient, and all of the scale's.
    assert largest([WORLD * gradient for gradient in gradients[0]], gradients[1]) < 1e-10
    assert abs(scales[0] - scales[1]) < 1e-10
    losses, gradients, _ = pairs(ranks, "open_clip True False")
    assert largest(*losses) < 1e-10
    assert largest(*gradients) > 1e-3, "the local loss without it drops the others' terms"


@needs("inf_cl")
@pytest.mark.parametrize(
    "name",
    [
        "inf_cl ring",
        pytest.param(
            "inf_cl fused",
            marks=pytest.mark.skipif(not interpreted(), reason="its kernels need a GPU"),
        ),
    ],
)
def test_inf_cl(ranks, name):
    losses, gradients, scales = pairs(ranks, name)
    # It computes in fp32, and sums the scale's gradient over ranks inside: W times ours.
    assert largest(*losses) < 1e-6
    assert largest(*gradients) < 1e-6
    assert abs(scales[0] / WORLD - scales[1]) < 1e-6
