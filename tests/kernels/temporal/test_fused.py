"""The temporal kernels against the float64 oracle, and what holds exactly."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svilm_fast.kernels import segment_pool, temporal_bce

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = [torch.float16, torch.bfloat16]

BCE_REGIMES = {
    "plain": {"masked": False},
    "masked": {},
    "mean squares": {"loss": "mse"},
    "wide": {"width": 300, "segments": 33, "batch": 2},
    "two segments": {"segments": 2, "masked": False},
    "one segment": {"segments": 1},
    "hot": {"temperature": 5.0},
    "cold": {"temperature": 0.01},
    "confident": {"confident": True, "temperature": 0.05, "masked": False},
    "confident squares": {"confident": True, "temperature": 0.1, "loss": "mse"},
}
POOL_REGIMES = {
    "plain": {"masked": False},
    "masked": {},
    "shared index": {"shared": True},
    "exact tiles": {"length": 64, "width": 128, "segments": 16},
    "many segments": {"segments": 40, "width": 16},
    "one segment": {"segments": 1, "width": 130},
    "one token": {"length": 1, "batch": 1},
}


@pytest.mark.parametrize("name", BCE_REGIMES)
def test_bce_against_float64(check_bce, name):
    check_bce(check_bce.Regime(**BCE_REGIMES[name]))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["masked", "mean squares", "confident"])
def test_bce_half_precision(check_bce, name, dtype):
    check_bce(check_bce.Regime(**BCE_REGIMES[name], dtype=dtype))


@pytest.mark.parametrize("name", POOL_REGIMES)
def test_pool_against_float64(check_pool, name):
    check_pool(check_pool.Regime(**POOL_REGIMES[name]))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["masked", "shared index"])
def test_pool_half_precision(check_pool, name, dtype):
    check_pool(check_pool.Regime(**POOL_REGIMES[name], dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("width", [*range(1, 130, 9), *range(144, 1025, 80)])
def test_every_kind_of_width(check_bce, check_pool, width, dtype):
    check_bce(check_bce.Regime(width=width, dtype=dtype))
    check_pool(check_pool.Regime(width=width, dtype=dtype))


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    segments=st.integers(1, 12),
    width=st.integers(1, 50),
    loss=st.sampled_from(["bce", "mse"]),
    seed=st.integers(0, 1000),
)
def test_bce_knows_no_order_and_no_padding(check_bce, segments, width, loss, seed):
    call = check_bce.Regime(segments=segments, width=width, loss=loss, seed=seed).make()
    z = call.pop("segments").requires_grad_()
    value = temporal_bce(z, **call, backend="fused")
    (gradient,) = torch.autograd.grad(value, z)
    order = torch.randperm(segments, generator=torch.Generator().manual_seed(seed))
    padded = [
        torch.nn.functional.pad(tensor[:, order], shape)
        for tensor, shape in (
            (z.detach(), (0, 0, 0, 3)),
            (call.pop("paste_mask"), (0, 3)),
            (call.pop("segment_mask"), (0, 3)),
        )
    ]
    other_z = padded[0].requires_grad_()
    other = temporal_bce(other_z, padded[1], segment_mask=padded[2], **call, backend="fused")
    (other_gradient,) = torch.autograd.grad(other, other_z)
    torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other_gradient[:, :-3], gradient[:, order], rtol=1e-4, atol=1e-6)
    assert (other_gradient[:, -3:] == 0).all()


def test_absent_segment_may_hold_anything(check_bce):
    call = check_bce.Regime().make()
    expected = temporal_bce(**call, backend="fused")
    call["segments"][~call["segment_mask"]] = float("nan")
    call["segments"].requires_grad_()
    value = temporal_bce(**call, backend="fused")
    assert torch.equal(value, expected)
    value.backward()
    assert call["segments"].grad.isfinite().all()


def test_empty_batches():
    z = torch.zeros(0, 3, 8, device=DEVICE, requires_grad=True)
    value = temporal_bce(z, torch.zeros(0, 3, dtype=torch.bool, device=DEVICE), backend="fused")
    value.backward()
    assert value.item() == 0
    tokens = torch.zeros(2, 0, 8, device=DEVICE, requires_grad=True)
    index = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    pooled, present = segment_pool(tokens, index, 3, backend="fused")
    pooled.sum().backward()
    assert (pooled == 0).all()
    assert not present.any()


def test_repeated_runs_are_bit_equal(check_bce, check_pool):
    for op, call in (
        (temporal_bce, check_bce.Regime(batch=9).make()),
        (lambda **k: segment_pool(**k)[0], check_pool.Regime().make()),
    ):
        results = [op(**call, backend="fused") for _ in range(3)]
        assert all(torch.equal(results[0], result) for result in results[1:])


def test_operators_keep_their_promises(check_bce, check_pool, poisoned_memory):
    poisoned_memory.stop()
    ops = torch.ops.svilm_temporal
    tests = ("test_schema", "test_faketensor")
    call = check_bce.Regime().make()
    tensors = (call["segments"], call["paste_mask"], call["segment_mask"])
    torch.library.opcheck(ops.bce_forward, (*tensors, 0.1, "bce"), test_utils=tests)
    _, logits = ops.bce_forward(*tensors, 0.1, "bce")
    one = torch.ones((), device=DEVICE)
    torch.library.opcheck(ops.bce_backward, (one, *tensors, 0.1, "bce", logits), test_utils=tests)
    tokens, index, count, mask = check_pool.Regime().make().values()
    torch.library.opcheck(ops.pool_forward, (tokens, index, count, mask), test_utils=tests)
    segments, _, counts = ops.pool_forward(tokens, index, count, mask)
    arguments = (segments, index, mask, counts, tokens.shape[1])
    torch.library.opcheck(ops.pool_backward, arguments, test_utils=tests)


def test_what_the_kernels_do_not_take():
    z = torch.zeros(1, 600, 8, device=DEVICE)
    mask = torch.zeros(1, 600, dtype=torch.bool, device=DEVICE)
    with pytest.raises(RuntimeError, match="600 segments are more than 512"):
        temporal_bce(z, mask, backend="fused")
    with pytest.raises(RuntimeError, match="65 segments are more than 64"):
        segment_pool(z, torch.zeros(600, dtype=torch.int64, device=DEVICE), 65, backend="fused")
    with pytest.raises(RuntimeError, match="not float64"):
        temporal_bce(z[:, :5].double(), mask[:, :5], backend="fused")
