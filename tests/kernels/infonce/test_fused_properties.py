"""Properties of the fused loss that hold for any input."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svilm_fast.kernels.infonce import infonce
from tests.bars import within

HALF = torch.float16
quick = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
thorough = settings(quick, max_examples=25)
CASES = {"batch": st.integers(1, 150), "seed": st.integers(0, 10**6), "scale": st.floats(0.5, 300)}


def evaluate(videos, texts, scale, weight=1.0, **options):
    leaves = [videos.clone().requires_grad_(), texts.clone().requires_grad_()]
    leaves.append(torch.tensor(scale, requires_grad=True))
    loss = infonce(*leaves, backend="fused", **options)
    return loss.detach(), *torch.autograd.grad(weight * loss, leaves)


def close(found, expected, bar, floor=1e-6):
    scale = expected.double().norm() + 1e-12
    within((found.double() - expected.double()).norm(), bar * scale + floor)


def permutation(rows, batch, seed, scale):
    videos, texts = rows(batch, 16, seed, HALF), rows(batch, 16, seed + 1, HALF)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    loss, *gradients = evaluate(videos, texts, scale)
    permuted_loss, *permuted = evaluate(videos[order], texts[order], scale)
    within(abs(loss - permuted_loss), 1e-6 * (1 + scale))
    for found, expected in zip(permuted[:2], gradients[:2]):
        close(found, expected[order], 2e-3)


def swap(rows, batch, seed, scale):
    videos, texts = rows(batch, 16, seed, HALF), rows(batch, 16, seed + 1, HALF)
    loss, of_videos, of_texts, of_scale = evaluate(videos, texts, scale)
    swapped, of_texts_too, of_videos_too, of_scale_too = evaluate(texts, videos, scale)
    within(abs(loss - swapped), 1e-6 * (1 + scale))
    close(of_texts_too, of_texts, 2e-3)
    close(of_videos_too, of_videos, 2e-3)
    close(of_scale_too, of_scale, 1e-3)


def upstream_is_linear(rows, batch, seed, scale):
    videos, texts = rows(batch, 16, seed, torch.float32), rows(batch, 16, seed + 1, torch.float32)
    _, *once = evaluate(videos, texts, scale)
    _, *thrice = evaluate(videos, texts, scale, weight=-3.0)
    for found, expected in zip(thrice, once):
        torch.testing.assert_close(found, -3 * expected, rtol=1e-6, atol=1e-9)


def chunks_do_not_matter(rows, batch, seed, scale):
    videos, texts = rows(batch, 16, seed, torch.float32), rows(batch, 16, seed + 1, torch.float32)
    whole = evaluate(videos, texts, scale)
    pieces = evaluate(videos, texts, scale, workspace_bytes=1)
    for found, expected in zip(pieces, whole):
        close(found, expected, 2e-6)


def padding_with_zero_dimensions_is_exact(rows, batch, seed, scale):
    videos, texts = rows(batch, 16, seed, HALF), rows(batch, 16, seed + 1, HALF)
    wide = [torch.nn.functional.pad(side, (0, 16)) for side in (videos, texts)]
    loss, of_videos, _, _ = evaluate(videos, texts, scale)
    padded_loss, of_wide, _, _ = evaluate(*wide, scale)
    within(abs(loss - padded_loss), 1e-6 * (1 + scale))
    close(of_wide[:, :16], of_videos, 2e-3)
    # Zero in both towers: nothing pulls along these dimensions.
    assert torch.equal(of_wide[:, 16:], torch.zeros_like(of_wide[:, 16:]))


def distinct_ids_are_no_ids(rows, batch, seed, scale):
    videos, texts = rows(batch, 16, seed, HALF), rows(batch, 16, seed + 1, HALF)
    plain = evaluate(videos, texts, scale)
    for mode in ("exclude", "share"):
        with_ids = evaluate(videos, texts, scale, pair_ids=torch.arange(batch), pair_mode=mode)
        within(abs(plain[0] - with_ids[0]), 1e-6 * (1 + scale))
        # Shared positives stay in the sums: the exponents round by scale * 2^-23, so p - 1 keeps an
        # error of that size, which the gradient multiplies by the scale once more.
        close(with_ids[1], plain[1], 2e-3, floor=1e-6 + 2 * 2**-23 * scale**2)


PROPERTIES = [
    permutation,
    swap,
    upstream_is_linear,
    chunks_do_not_matter,
    padding_with_zero_dimensions_is_exact,
    distinct_ids_are_no_ids,
]


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_property(rows, holds):
    quick(given(**CASES)(lambda batch, seed, scale: holds(rows, batch, seed, scale)))()


@pytest.mark.slow
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_property_thoroughly(rows, holds):
    thorough(given(**CASES)(lambda batch, seed, scale: holds(rows, batch, seed, scale)))()
