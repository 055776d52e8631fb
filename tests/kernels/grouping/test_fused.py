"""Grouping's kernels against the float64 oracle, and what holds exactly."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svilm_fast.kernels import grouping, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

REGIMES = {
    "plain": {},
    "hard": {"mode": "hard"},
    "soft": {"mode": "soft", "masked": True},
    "masked and dropped": {"masked": True, "dropped": True, "eps": 0.3},
    "cold": {"temperature": 0.2, "sharpness": 4.0},
    "warm soft": {"mode": "soft", "temperature": 3.0, "sharpness": 20.0},
    "shared bias": {"bias": "shared"},
    "no bias": {"bias": None, "groups": 20, "width": 80},
    "one group": {"groups": 1},
    "one token": {"length": 1, "batch": 1},
    "exact tiles": {"length": 32, "width": 64, "groups": 16},
    "many groups": {"groups": 64, "length": 50, "width": 16},
    "empty groups": {"mode": "hard", "sharpness": 30.0, "groups": 12, "length": 9},
    "small gradient": {"dtype": torch.float16, "upstream": 1e-6},
    "splits": {"plan": (("splits", 2), ("chunk", 32), ("block_tokens", 32))},
    "splits of nothing": {
        "length": 20,
        "plan": (("splits", 3), ("chunk", 16), ("block_tokens", 16)),
    },
    "slabs": {"width": 192, "plan": (("own_blocks", 1), ("slabs", 3), ("prefetch", 0))},
    "prefetch": {
        "width": 144,
        "plan": (("own_blocks", 3), ("slabs", 1), ("prefetch", 2), ("resident", True)),
    },
    "resident queries": {"width": 144, "plan": (("resident", True),)},
}


@pytest.mark.parametrize("name", REGIMES)
def test_against_float64(check_grouping, name):
    check_grouping(check_grouping.Regime(**({"dtype": torch.float32} | REGIMES[name])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["masked and dropped", "soft", "splits", "slabs"])
def test_half_precision_against_float64(check_grouping, name, dtype):
    check_grouping(check_grouping.Regime(**(REGIMES[name] | {"dtype": dtype})))


HALF_BLOCKS = [96, 160]  # whole halves of a block, but not whole blocks


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("width", HALF_BLOCKS)
def test_widths_of_half_a_block(check_grouping, width, dtype):
    check_grouping(check_grouping.Regime(width=width, dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "dtype"),
    [(width, torch.float16) for width in range(16, 1025, 48)]
    + [(width, torch.float32) for width in range(32, 1025, 96)],
)
def test_every_kind_of_width(check_grouping, width, dtype):
    # Without the bias, whose gradient cancels: its error says nothing of widths.
    check_grouping(check_grouping.Regime(width=width, dtype=dtype, length=20, bias=None))


@pytest.mark.parametrize("needed", ["queries", "tokens", "group_bias"])
def test_only_needed_gradients_are_computed(check_grouping, needed):
    arguments, d_pooled, d_counts = check_grouping.make(check_grouping.Regime())
    _, everything = check_grouping.run(arguments, "fused", d_pooled, d_counts)
    arguments[needed] = arguments[needed].clone().requires_grad_()
    out = grouping(**arguments, backend="fused")
    (alone,) = torch.autograd.grad(
        (out.pooled, out.counts), arguments[needed], (d_pooled, d_counts)
    )
    assert torch.equal(alone, everything[needed])


@pytest.mark.parametrize("output", ["pooled", "counts"])
def test_one_output_used(check_grouping, output):
    arguments, *_ = check_grouping.make(check_grouping.Regime())
    gradients = []
    for backend in ("fused", "reference"):
        arguments["tokens"] = arguments["tokens"].detach().requires_grad_()
        value = getattr(grouping(**arguments, backend=backend), output)
        gradients += torch.autograd.grad(value.square().sum(), arguments["tokens"])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_no_grad_and_index_without_gradient(check_grouping):
    arguments, *_ = check_grouping.make(check_grouping.Regime())
    arguments["tokens"].requires_grad_()
    out = grouping(**arguments, backend="fused")
    assert out.pooled.requires_grad
    assert not out.index.requires_grad
    with torch.no_grad():
        silent = grouping(**arguments, backend="fused")
    assert not silent.pooled.requires_grad
    assert torch.equal(silent.pooled, out.pooled)


def test_second_backward_is_refused(check_grouping):
    arguments, *_ = check_grouping.make(check_grouping.Regime())
    arguments["tokens"].requires_grad_()
    value = grouping(**arguments, backend="fused").pooled.sum()
    value.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


def test_empty_batch_and_no_tokens():
    for batch, length in ((0, 5), (2, 0)):
        tokens = torch.randn(batch, length, 32, device=DEVICE, requires_grad=True)
        queries = torch.randn(batch, 3, 32, device=DEVICE, requires_grad=True)
        out = grouping(queries, tokens, mode="hard", backend="fused")
        (out.pooled.sum() + out.counts.sum()).backward()
        assert (out.pooled == 0).all()
        assert (queries.grad == 0).all()
        assert tokens.grad.shape == tokens.shape


def test_strided_inputs_give_the_same_bits(check_grouping):
    arguments, *_ = check_grouping.make(check_grouping.Regime(masked=True, dropped=True))
    plain = grouping(**arguments, backend="fused")
    for name in ("queries", "tokens", "token_mask", "token_ids"):
        value = arguments[name]
        wide = torch.stack([value, value.flip(0)], dim=-1).flatten(-2)
        arguments[name] = wide[..., ::2]
    assert not arguments["tokens"].is_contiguous()
    strided = grouping(**arguments, backend="fused")
    assert all(torch.equal(a, b) for a, b in zip(plain, strided))


def test_ties_take_the_first_group():
    tokens = torch.ones(1, 9, 16, device=DEVICE)
    queries = torch.ones(1, 5, 16, device=DEVICE)
    for backend in ("fused", "reference"):
        out = grouping(queries, tokens, mode="hard", backend=backend)
        assert (out.index == 0).all()


def test_repeated_runs_are_bit_equal(check_grouping):
    arguments, d_pooled, d_counts = check_grouping.make(check_grouping.Regime(dtype=torch.float16))
    first, gradients = check_grouping.run(arguments, "fused", d_pooled, d_counts)
    for _ in range(2):
        again, repeated = check_grouping.run(arguments, "fused", d_pooled, d_counts)
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert all(torch.equal(gradients[name], repeated[name]) for name in gradients)


@pytest.mark.parametrize(
    "shape, dtype, reason",
    [
        ((65, 32), torch.float32, "65 groups are more than 64"),
        ((4, 24), torch.float32, "width 24 is not a multiple of 16"),
        ((4, 2048), torch.float32, "width 2048 is not a multiple of 16 up to 1024"),
        ((4, 32), torch.float64, "tokens are torch.float64"),
    ],
)
def test_what_the_kernels_do_not_take(shape, dtype, reason):
    groups, width = shape
    queries = torch.randn(1, groups, width, device=DEVICE).to(dtype)
    tokens = torch.randn(1, 3, width, device=DEVICE).to(dtype)
    with pytest.raises(RuntimeError, match=reason):
        grouping(queries, tokens, mode="hard", backend="fused")
    assert grouping(queries, tokens, mode="hard").pooled.shape == queries.shape


def samples_are_independent(check_grouping, choice, _):
    regime = check_grouping.Regime(batch=3, **choice)
    arguments, d_pooled, d_counts = check_grouping.make(regime)
    order = torch.tensor([2, 0, 1], device=DEVICE)
    permuted = {
        name: value[order] if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    out, gradients = check_grouping.run(arguments, "fused", d_pooled, d_counts)
    other, other_gradients = check_grouping.run(permuted, "fused", d_pooled[order], d_counts[order])
    assert all(torch.equal(a[order], b) for a, b in zip(out, other))
    assert all(torch.equal(gradients[name][order], other_gradients[name]) for name in gradients)


def masked_padding_does_not_exist(check_grouping, choice, padding):
    arguments, d_pooled, d_counts = check_grouping.make(check_grouping.Regime(**choice))
    length = arguments["tokens"].shape[1]
    if arguments["token_mask"] is None:
        arguments["token_mask"] = torch.ones(2, length, dtype=torch.bool, device=DEVICE)
    padded = dict(arguments)
    filler = torch.full((2, padding, choice["width"]), 7.0, device=DEVICE)
    padded["tokens"] = torch.cat([arguments["tokens"], filler], dim=1)
    nobody = torch.zeros(2, padding, dtype=torch.bool, device=DEVICE)
    padded["token_mask"] = torch.cat([arguments["token_mask"], nobody], dim=1)
    out, gradients = check_grouping.run(arguments, "fused", d_pooled, d_counts)
    other, other_gradients = check_grouping.run(padded, "fused", d_pooled, d_counts)
    torch.testing.assert_close(out.pooled, other.pooled, rtol=1e-5, atol=1e-6)
    assert torch.equal(out.index, other.index[:, :length])
    assert (other.index[:, length:] == -1).all()
    torch.testing.assert_close(
        gradients["tokens"], other_gradients["tokens"][:, :length], rtol=1e-4, atol=1e-6
    )
    assert (other_gradients["tokens"][:, length:] == 0).all()


def gradient_is_linear_in_upstream(check_grouping, choice, number):
    # A power of two goes through every rounding unchanged.
    factor = 2.0 ** (number % 21 - 10)
    arguments, d_pooled, d_counts = check_grouping.make(check_grouping.Regime(**choice))
    _, once = check_grouping.run(arguments, "fused", d_pooled, d_counts)
    _, scaled = check_grouping.run(arguments, "fused", factor * d_pooled, factor * d_counts)
    for name, gradient in once.items():
        assert torch.equal(factor * gradient, scaled[name]), name


def bias_gradient_sums_to_zero(check_grouping, choice, _):
    arguments, d_pooled, d_counts = check_grouping.make(check_grouping.Regime(**choice))
    _, gradients = check_grouping.run(arguments, "fused", d_pooled, d_counts)
    total = gradients["group_bias"].sum(1)
    size = gradients["group_bias"].abs().sum(1)
    assert (total.abs() <= 1e-5 * size + 1e-6).all()


PROPERTIES = (
    samples_are_independent,
    masked_padding_does_not_exist,
    gradient_is_linear_in_upstream,
    bias_gradient_sums_to_zero,
)
regimes = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["gumbel", "hard", "soft"]),
        "length": st.integers(1, 40),
        "width": st.sampled_from([16, 48]),
        "groups": st.integers(1, 20),
        "masked": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)


def examples(count):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("holds", PROPERTIES)
@examples(2)
@given(choice=regimes, number=st.integers(1, 70))
def test_property(check_grouping, holds, choice, number):
    holds(check_grouping, choice, number)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("holds", PROPERTIES)
@examples(12)
@given(choice=regimes, number=st.integers(1, 70))
def test_property_many_times(check_grouping, holds, choice, number):
    holds(check_grouping, choice, number)


@pytest.mark.slow
def test_full_graph_compilation(check_grouping):
    arguments, d_pooled, _ = check_grouping.make(check_grouping.Regime(masked=True))
    arguments["tokens"].requires_grad_()

    def loss(tokens):
        out = grouping(**(arguments | {"tokens": tokens}))
        return (out.pooled * d_pooled).sum() + out.counts.square().sum()

    with use_backend("fused"):
        eager = loss(arguments["tokens"])
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(arguments["tokens"])
        gradients = [torch.autograd.grad(v, arguments["tokens"])[0] for v in (eager, compiled)]
    assert torch.equal(eager, compiled)
    assert torch.equal(*gradients)


def test_operators_keep_their_promises(check_grouping, poisoned_memory):
    poisoned_memory.stop()
    arguments, d_pooled, d_counts = check_grouping.make(check_grouping.Regime(length=9))
    order = ("queries", "tokens", "group_bias", "seeds", "token_ids", "token_mask")
    tensors = [arguments[name] for name in order]
    settings = (arguments["mode"], 1.0, 1.0)
    tests = ("test_schema", "test_faketensor")
    forward, backward = torch.ops.svilm_grouping.forward, torch.ops.svilm_grouping.backward
    torch.library.opcheck(forward, (*tensors, *settings), test_utils=tests)
    saved = forward(*tensors, *settings)
    for needs in ((True, True), (True, False), (False, True)):
        call = (d_pooled, d_counts, *tensors, *settings, *saved, *needs)
        torch.library.opcheck(backward, call, test_utils=tests)


def test_nothing_grows_with_tokens_times_groups(check_grouping, poisoned_memory):
    poisoned_memory.stop()
    arguments, *_ = check_grouping.make(check_grouping.Regime(length=100, groups=32))
    for name in ("queries", "tokens", "group_bias"):
        arguments[name].requires_grad_()
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        grouping(**arguments, backend="fused")
    own = {
        t.untyped_storage().data_ptr() for t in arguments.values() if isinstance(t, torch.Tensor)
    }
    extra = sum(size for pointer, size in saved.items() if pointer not in own)
    batch, groups, width = arguments["queries"].shape
    assert extra <= 4 * batch * (groups * width + groups + 100)


@pytest.mark.skipif(DEVICE == "cuda", reason="about the interpreter")
def test_interpreter_still_multiplies_bf16_bit_patterns():
    """If this fails, the interpreter supports bf16: remove the `UPCAST` switches."""

    @triton.jit
    def product(a, b, out):
        row = tl.arange(0, 16)
        at = row[:, None] * 16 + row[None, :]
        tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))

    ones = torch.ones(16, 16, dtype=torch.bfloat16)
    out = torch.empty(16, 16)
    product[(1,)](ones, ones, out)
    assert not torch.equal(out, torch.full_like(out, 16.0))
