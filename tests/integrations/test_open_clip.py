"""FusedClipLoss gives the values and gradients of open_clip's ClipLoss, also over ranks.

open_clip is compared where it is installed; a plain implementation always.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from svilm_fast.integrations.open_clip import FusedClipLoss

RANKS = 2
MODES = ("local", "global", "no gather gradient")


def installed_loss() -> Path | None:
    """The file of open_clip's losses; the package itself would import torchvision."""
    spec = importlib.util.find_spec("open_clip")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0]) / "loss.py" if folders else None


@pytest.fixture(scope="module")
def ranks(run_on_ranks, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("open_clip")
    words = [folder, *filter(None, [installed_loss()])]
    run_on_ranks(RANKS, Path(__file__).with_name("open_clip_ranks.py"), *words)
    return [torch.load(folder / f"rank_{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("peer", ["plain", "open_clip"])
def test_values_and_gradients_over_ranks(ranks, mode, peer):
    if peer not in ranks[0][mode]:
        pytest.skip("open_clip is not installed")
    for rank in ranks:
        ours, expected = rank[mode]["ours"], rank[mode][peer]
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-10, msg=f"{mode} {name}")


def test_the_modes_differ(ranks):
    found = [torch.stack([rank[mode]["ours"]["loss"] for rank in ranks]) for mode in MODES]
    assert found[0].std() > 1e-3, "each rank has its own part of the loss"
    assert found[1].std() < 1e-12, "each rank has the loss of the batch"
    torch.testing.assert_close(found[0].mean(), found[1].mean())
    whole, part = (ranks[0][mode]["ours"]["videos"] for mode in MODES[1:])
    torch.testing.assert_close(part * RANKS, whole)


def test_a_world_size_that_is_not_the_process_groups(ranks):
    assert "the process group has rank 0 of 2" in ranks[0]["wrong"]


def test_one_process():
    generator = torch.Generator().manual_seed(0)
    rows = normalize(torch.randn(2, 12, 8, generator=generator, dtype=torch.float64), dim=-1)
    images, texts = (side.clone().requires_grad_() for side in rows)
    scale = torch.tensor([7.0], dtype=torch.float64, requires_grad=True)  # as open_clip's exp()
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = FusedClipLoss(cache_labels=True)(images, texts, scale, bias, output_dict=True)
    logits = scale * images @ texts.T + bias
    labels = torch.arange(12)
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(loss["contrastive_loss"], expected)
    leaves = (images, texts, scale, bias)
    found = torch.autograd.grad(loss["contrastive_loss"], leaves)
    for ours, theirs in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_features_of_different_dtypes():
    rows = normalize(torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    images, texts = rows[0].bfloat16().requires_grad_(), rows[1]
    loss = FusedClipLoss()(images, texts, torch.tensor(7.0))
    torch.testing.assert_close(loss, FusedClipLoss()(images.float(), texts, torch.tensor(7.0)))
    loss.backward()
    assert images.grad is not None
    assert images.grad.dtype == torch.bfloat16


def test_what_has_no_equal_is_refused():
    with pytest.raises(ValueError, match="--gather-with-grad"):
        FusedClipLoss(local_loss=True, world_size=2)
    with pytest.raises(ValueError, match="Horovod"):
        FusedClipLoss(use_horovod=True)
