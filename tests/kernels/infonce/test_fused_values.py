"""The kernels, interpreted, against eager float64 in every regime and at ragged shapes."""

import pytest
import torch

from svilm_fast.kernels.device import A100, assume_traits
from svilm_fast.kernels.infonce import infonce, infonce_partials
from tests.bars import within

HALF = torch.float16
pytestmark = pytest.mark.usefixtures("poisoned_memory")

REGIME_NAMES = [
    "flat",
    "random",
    "sharp",
    "half",
    "confident",
    "saturated",
    "sharper",
    "duplicates",
    "opposite",
]


@pytest.mark.parametrize("name", REGIME_NAMES)
def test_regimes_in_half_precision(check, regime, name):
    check(*regime(name, 100, 32, HALF))


@pytest.mark.parametrize("name", REGIME_NAMES)
def test_regimes_of_resident_tiles(check, regime, name):
    check(*regime(name, 100, 80, HALF))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["random", "confident", "sharper"])
def test_regimes_in_other_types(check, regime, dtype, name):
    check(*regime(name, 70, 32, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", REGIME_NAMES)
@pytest.mark.parametrize("batch", [1, 2, 63, 64, 65, 127, 129, 257])
def test_all_regimes_batches_and_types(check, regime, dtype, name, batch):
    # Streamed operands and, in half precision, resident tiles.
    check(*regime(name, batch, 80 if batch % 2 else 48, dtype))


@pytest.mark.parametrize("batch", [1, 2, 129])
def test_ragged_batches(check, regime, batch):
    check(*regime("random", batch, 16, HALF))


@pytest.mark.parametrize("dim", [16, 80, 128])
def test_dimensions(check, regime, dim):
    check(*regime("random", 33, dim, HALF))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [48, 96, 112, 256, 512, 768, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_more_dimensions(check, regime, dim, dtype):
    check(*regime("random", 67, dim, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dim", range(16, 1025, 48))
def test_every_kind_of_width(check, regime, dim, dtype):
    check(*regime("random", 20, dim, dtype))


@pytest.mark.parametrize("m, n, offset", [(5, 140, 133), (140, 5, -70), (130, 150, 7)])
def test_rectangles(check, rows, m, n, offset):
    options = {"diagonal_offset": offset}
    check(
        rows(m, 16, 0, HALF), rows(n, 16, 1, HALF), 10.0, options=options, naive={"offset": offset}
    )


@pytest.mark.parametrize("workspace", [1, 60_000])
@pytest.mark.parametrize("dim", [16, 80])
def test_chunks_of_backward(check, regime, workspace, dim):
    check(*regime("random", 300, dim, HALF), options={"workspace_bytes": workspace})


def test_chunks_of_forward(check, regime, monkeypatch):
    from svilm_fast.kernels.infonce.fused import layout

    monkeypatch.setattr(layout, "ROW_SUM_BYTES", 1)
    monkeypatch.setattr(layout, "MAX_STRIP_TILES", 1)
    for mode in (None, "exclude", "share"):
        ids = None if mode is None else torch.arange(200) % 90
        check(
            *regime("random", 200, 16, HALF),
            options={} if ids is None else {"pair_ids": ids, "pair_mode": mode},
            naive={} if ids is None else {"video_ids": ids, "text_ids": ids, "pair_mode": mode},
        )


def test_long_strips(check, regime, monkeypatch):
    from svilm_fast.kernels.infonce.fused import forward

    monkeypatch.setattr(forward, "strip_row_tiles", lambda *_: 2)
    check(*regime("random", 300, 16, HALF))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pointer_loads_of_older_gpus(check, regime, dtype):
    with assume_traits(A100):
        check(*regime("random", 130, 48, dtype))
        check(*regime("sharper", 70, 16, dtype))


@pytest.mark.parametrize("mode", ["exclude", "share"])
@pytest.mark.parametrize("name", ["random", "sharper"])
def test_pair_ids(check, regime, mode, name):
    ids = torch.arange(130) % 60 * 2**33
    check(
        *regime(name, 130, 16, HALF),
        options={"pair_ids": ids, "pair_mode": mode},
        naive={"video_ids": ids, "text_ids": ids, "pair_mode": mode},
    )


def test_excluded_pairs_of_a_rectangle(check, rows):
    video_ids, text_ids = torch.arange(70) % 9, torch.arange(150) % 9
    check(
        rows(70, 16, 0, HALF),
        rows(150, 16, 1, HALF),
        10.0,
        options={"pair_ids": (video_ids, text_ids), "diagonal_offset": 60},
        naive={"video_ids": video_ids, "text_ids": text_ids, "offset": 60},
    )


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)])
def test_frozen_inputs(check, regime, needs):
    check(*regime("random", 70, 16, HALF), needs=needs)


def test_a_zero_vector_and_views(check, rows):
    videos, texts = rows(66, 32, 0, HALF), rows(66, 32, 1, HALF)
    videos[3] = 0
    # Neither contiguous nor, for texts, at an address that 16 divides.
    check(
        videos.T.contiguous().T,
        torch.cat((texts.flatten()[:1], texts.flatten()))[1:].view(66, 32),
        9.0,
    )


def test_a_huge_norm_takes_the_other_reference(check, rows):
    videos, texts = rows(66, 32, 0, HALF), rows(66, 32, 1, HALF)
    videos[5] *= 300
    check(videos, texts, 5.0)


def test_an_empty_column_has_an_infinite_logarithm(rows):
    ids = torch.zeros(70, dtype=torch.int64)
    call = {"video_ids": ids, "text_ids": ids, "diagonal_offset": 1}
    videos, texts = rows(70, 16, 0, HALF).requires_grad_(), rows(70, 16, 1, HALF)
    fused = infonce_partials(videos, texts, 5.0, backend="fused", **call)
    plain = infonce_partials(videos, texts, 5.0, backend="reference", **call)
    assert fused.row_lse[69] == fused.column_lse[0] == -torch.inf
    for found, expected in zip(fused, plain):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    sums = [part.row_lse[:69].sum() + part.column_lse[1:].sum() for part in (fused, plain)]
    found, expected = (torch.autograd.grad(total, videos)[0] for total in sums)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("offset", [0, 3, -200, 40])
@pytest.mark.parametrize("mode", [None, "exclude", "share"])
def test_partial_sums_with_non_uniform_upstream_gradients(rows, mode, offset):
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(size, generator=generator) for size in (70, 140, 70)]
    video_ids, text_ids = torch.arange(70) % 50, torch.arange(140) % 50
    ids = {} if mode is None else {"video_ids": video_ids, "text_ids": text_ids, "pair_mode": mode}
    results = []
    for backend, dtype in (("fused", HALF), ("reference", torch.float64)):
        leaves = [
            rows(70, 16, 0, HALF).to(dtype).requires_grad_(),
            rows(140, 16, 1, HALF).to(dtype).requires_grad_(),
            torch.tensor(12.0, requires_grad=True),
        ]
        found = infonce_partials(*leaves, diagonal_offset=offset, backend=backend, **ids)
        weighted = sum((value * up).sum() for value, up in zip(found, upstream))
        results.append((found, torch.autograd.grad(weighted, leaves)))
    for found, expected in zip(results[0][0], results[1][0]):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)
    for found, expected in zip(results[0][1][:2], results[1][1][:2]):
        error = (found.double() - expected).norm() / expected.norm()
        within(error, 2.0**-11)
    torch.testing.assert_close(results[0][1][2], results[1][1][2], rtol=1e-4, atol=5e-3)


def test_a_zero_upstream_gradient_is_zero(rows):
    videos = rows(70, 16, 0, HALF).requires_grad_()
    found = infonce_partials(videos, rows(70, 16, 1, HALF), 5.0, backend="fused")
    gradient = torch.autograd.grad(0 * found.row_lse.sum(), videos)[0]
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", ["confident", "random"])
def test_twice_as_good_as_naive_half_precision(regime, oracle, name):
    videos, texts, scale = regime(name, 100, 32, HALF)
    errors = {}
    truth = videos.double().requires_grad_()
    expected = torch.autograd.grad(oracle(truth, texts, scale), truth)[0]
    for path in ("fused", "naive"):
        leaf = videos.clone().requires_grad_()
        if path == "fused":
            loss = infonce(leaf, texts, scale, backend="fused")
        else:
            logits, labels = scale * leaf @ texts.T, torch.arange(100)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            loss = (loss + torch.nn.functional.cross_entropy(logits.T, labels)) / 2
        gradient = torch.autograd.grad(loss, leaf)[0].double()
        errors[path] = (gradient - expected).norm().item()
    assert errors["fused"] <= 0.5 * errors["naive"]
