"""Inputs, the independent float64 oracle and the ranks of the InfoNCE tests."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.infonce import infonce
from tests.bars import within
from tests.kernels.infonce import gluon_blocks, gluon_gradient_blocks


def unit_rows(rows, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1).to(
        dtype
    )


def naive_loss(
    videos, texts, scale, *, offset=0, video_ids=None, text_ids=None, pair_mode="exclude"
):
    """Eager float64 on the whole matrix: targets and `log_softmax`, no shared tricks."""
    logits = scale * videos.double() @ texts.double().T
    rows, columns = logits.shape
    index = torch.arange(max(rows, columns), device=logits.device)
    diagonal = index[:rows, None] + offset == index[:columns]
    same = diagonal
    if video_ids is not None:
        same = video_ids[:, None] == text_ids[None, :]
    if pair_mode == "exclude":
        logits = logits.masked_fill(same & ~diagonal, -1e30)
        same = diagonal
    same = same.double()
    paired_rows, paired_columns = diagonal.any(1), diagonal.any(0)
    row_target = (same / same.sum(1, keepdim=True).clamp(min=1))[paired_rows]
    column_target = (same / same.sum(0, keepdim=True).clamp(min=1))[:, paired_columns]
    row_terms = -(row_target * torch.log_softmax(logits, 1)[paired_rows]).sum(1)
    column_terms = -(column_target * torch.log_softmax(logits, 0)[:, paired_columns]).sum(0)
    return (row_terms.mean() + column_terms.mean()) / 2


REGIMES = {
    # scale, how far a text is from its video (None: nothing in common)
    "flat": (1.0, None),
    "random": (1 / 0.07, None),
    "sharp": (100.0, None),
    "half": (1 / 0.07, 2.4),
    "confident": (100.0, 1.0),
    "saturated": (100.0, 0.8),
    "sharper": (1000.0, None),
    "duplicates": (1 / 0.07, "pairs of equal rows"),
    "opposite": (100.0, "all texts opposite to all videos"),
}
# Relative RMS error against float64: rounding of the output, not of the computation.
# The interpreter truncates to bfloat16 instead of rounding.
BARS = {
    torch.float32: 2e-5,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-7 if interpreted() else 2.0**-8,
}


def regime_inputs(name, batch, dim, dtype, seed=0):
    """Embeddings rounded to `dtype`, and the scale."""
    scale, distance = REGIMES[name]
    videos, texts = unit_rows(batch, dim, seed), unit_rows(batch, dim, seed + 1)
    if isinstance(distance, float):
        texts = normalize(videos + distance * texts, dim=1)
    elif name == "duplicates":
        videos, texts = videos[torch.arange(batch) // 2], texts[torch.arange(batch) // 2]
    elif name == "opposite":
        common = videos[:1].clone()
        videos = normalize(common + 0.5 * videos, dim=1)
        texts = -normalize(common + 0.5 * texts, dim=1)
    return videos.to(dtype), texts.to(dtype), scale


def check_against_float64(videos, texts, scale, *, options=None, naive=None, needs=(1, 1, 1)):
    """Loss and gradients of the fused path against eager float64, under the absolute bars."""
    options, naive = options or {}, naive or {}
    results = []
    for dtype, backend in ((videos.dtype, "fused"), (torch.float64, None)):
        call = [videos.to(dtype), texts.to(dtype), torch.tensor(scale, device=videos.device)]
        if dtype == torch.float64:
            call[2] = call[2].double()
        leaves = [x.clone().requires_grad_(bool(need)) for x, need in zip(call, needs)]
        if backend is None:
            loss = naive_loss(*leaves, **naive)
        else:
            loss = infonce(*leaves, backend=backend, **options)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        results.append((loss, torch.autograd.grad(0.37 * loss, wanted)))
    (loss, gradients), (true_loss, true_gradients) = results
    assert loss.dtype == torch.float32
    error = abs(loss.item() - true_loss.item())
    within(error, 2e-5 * abs(true_loss.item()) + 1e-12, "loss")
    for found, expected in zip(gradients, true_gradients):
        assert torch.isfinite(found).all()
        if found.ndim == 0:
            # What cancels in this sum is of the size of 1 - p, which the loss bounds.
            bar = 1e-4 * abs(expected.item()) + 1e-4 * min(1.0, true_loss.item()) + 2e-7
            within(abs(found.item() - expected.item()), bar, "gradient of the scale")
            continue
        # A float32 logit of this size is rounded by 2^-24 of it before the power.
        bar = BARS[found.dtype] + 2.0**-22 * scale
        error = (found.double() - expected).norm()
        # Half a step of float16's smallest numbers: in the output, and 2^-14 of it inside.
        smallest = 2.0**-25 if found.dtype == torch.float16 else 2.0**-39 * scale
        within(error, bar * expected.norm() + smallest * found.numel() ** 0.5, "gradient")
        worst = (found.double() - expected).abs().amax(1) - 8 * bar * expected.abs().amax(1)
        within(worst.clamp(min=0), bar * expected.abs().max() + smallest, "gradient's largest")


@pytest.fixture
def check():
    return check_against_float64


@pytest.fixture
def regime():
    return regime_inputs


@pytest.fixture
def rows():
    return unit_rows


@pytest.fixture
def oracle():
    return naive_loss


@pytest.fixture
def check_sums(rows, monkeypatch):
    """`check_sums(block, seed, module, stages)`: the interpreted Gluon kernel against float64."""
    from svilm_fast.kernels.infonce.fused import gluon_sums

    def check(block, seed=0, module=gluon_sums, stages=2):
        return gluon_blocks.check_sums(rows, monkeypatch, block, seed, module, stages)

    return check


@pytest.fixture
def check_gradient(rows, monkeypatch):
    """The same for the Gluon gradient: `check_gradient(block, seed, module, stages)`."""
    from svilm_fast.kernels.infonce.fused import gluon_gradient

    def check(block, seed=0, module=gluon_gradient, stages=2):
        return gluon_gradient_blocks.check_gradient(rows, monkeypatch, block, seed, module, stages)

    return check


@pytest.fixture(scope="session")
def rank_results(run_ranks):
    """What three gloo ranks found: for `all` (3 ranks) and `pair` (2), one dict per rank."""
    saved = run_ranks(Path(__file__).with_name("rank_worker.py"), 3)
    return {
        "all": [results["all"] for results in saved],
        "pair": [results["pair"] for results in saved if "pair" in results],
    }
