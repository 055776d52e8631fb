"""The fused path as PyTorch sees it: operators, gradients that are asked for, memory, launches."""

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.kernels import record_launches
from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.grounding import grounding_loss, grounding_scores, matrix_infonce
from svilm_fast.kernels.grounding.fused import backward, function
from svilm_fast.kernels.grounding.fused.layout import layout_of
from svilm_fast.kernels.registry import ops

pytestmark = pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")


def problem(videos=6, groups=8, nouns=2, dim=16, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    leaves = [
        normalize(torch.randn(shape, generator=generator), dim=-1).to(dtype).requires_grad_()
        for shape in ((videos, groups, dim), (videos, nouns, dim))
    ]
    mask = torch.ones(videos, nouns, dtype=torch.bool)
    mask[1], mask[2, 1:] = False, False
    beta, scale = torch.tensor(7.0, requires_grad=True), torch.tensor(15.0, requires_grad=True)
    return leaves[0], leaves[1], mask, beta, scale


def loss_of(groups, nouns, mask, beta, scale):
    return grounding_loss(groups, nouns, mask, beta, scale, backend="fused")


def composed(groups, nouns, mask, beta, scale):
    scores = grounding_scores(groups, nouns, mask, beta, backend="fused")
    return matrix_infonce(scores, scale, valid=mask.any(1), backend="fused")


def test_one_piece_equals_the_composed_ops():
    inputs = problem()
    leaves = [t for t in inputs if t.requires_grad]
    results = []
    for function_of in (loss_of, composed):
        loss = function_of(*inputs)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*results):
        difference = (one.double() - other.double()).norm()
        assert difference <= 1e-3 * other.double().norm()


@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (4,), (0, 4), (1, 3)])
def test_only_the_gradients_that_are_needed(wanted, monkeypatch):
    inputs = problem()
    full = torch.autograd.grad(loss_of(*inputs), [inputs[i] for i in wanted])
    products = []
    multiply = backward.accumulate_product
    monkeypatch.setattr(
        backward, "accumulate_product", lambda *a, **k: products.append(1) or multiply(*a, **k)
    )
    frozen = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    found = torch.autograd.grad(loss_of(*frozen), [frozen[i] for i in wanted])
    for one, other in zip(found, full):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert len(products) == len({0, 1} & set(wanted))


@pytest.mark.parametrize("wanted", [(0,), (1,), (3,)])
def test_only_the_gradients_that_are_needed_of_the_scores(wanted):
    inputs = problem()[:4]
    frozen = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    upstream = torch.randn(6, 6)
    both = []
    for leaves in (inputs, frozen):
        scores = grounding_scores(*leaves, backend="fused")
        both.append(torch.autograd.grad((scores * upstream).sum(), [leaves[i] for i in wanted]))
    for one, other in zip(*both):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_without_a_graph_the_values_are_the_same():
    inputs = problem()
    loss = loss_of(*inputs)
    with torch.no_grad():
        assert torch.equal(loss_of(*inputs), loss.detach())
    detached = [t.detach() for t in inputs]
    assert not loss_of(*detached).requires_grad


@pytest.mark.parametrize("transform", ["expanded", "transposed", "sliced"])
def test_inputs_need_not_be_contiguous(transform):
    groups, nouns, mask, beta, scale = (t.detach() for t in problem(dim=32))
    if transform == "expanded":
        views = groups[:1].expand(6, 8, 32), nouns[:, :1].expand(6, 2, 32), mask[:1].expand(6, 2)
    elif transform == "transposed":
        views = groups.mT.contiguous().mT, nouns.mT.contiguous().mT, mask.mT.contiguous().mT
    else:
        views = groups[..., ::2], nouns[..., ::2], mask
    plain = [view.contiguous() for view in views]
    results = []
    for tensors in (views, plain):
        leaves = [t.detach().requires_grad_() for t in tensors[:2]]
        loss = loss_of(*leaves, tensors[2], beta, scale)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*results):
        assert torch.equal(one, other)


def test_padding_of_dim_and_chunks_change_no_bit_of_the_scores():
    groups, nouns, mask, beta, _ = problem(videos=9, dim=48)
    scores = grounding_scores(groups, nouns, mask, beta, backend="fused")
    padded = [torch.nn.functional.pad(t, (0, 16)) for t in (groups, nouns)]
    assert torch.equal(grounding_scores(*padded, mask, beta, backend="fused"), scores)
    whole, chunks = (
        torch.autograd.grad(
            grounding_scores(
                groups, nouns, mask, beta, workspace_bytes=size, backend="fused"
            ).sum(),
            (groups, nouns, beta),
        )
        for size in (1 << 30, 1)
    )
    assert torch.equal(whole[0], chunks[0])
    torch.testing.assert_close(whole[1], chunks[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(whole[2], chunks[2], rtol=2e-6, atol=1e-7)


def test_repeated_runs_are_equal_to_the_bit():
    runs = []
    for _ in range(2):
        inputs = problem(videos=40)
        loss = loss_of(*inputs)
        leaves = [t for t in inputs if t.requires_grad]
        runs.append((loss, *torch.autograd.grad(loss, leaves)))
    assert all(torch.equal(one, other) for one, other in zip(*runs))


def test_second_backward_says_what_is_wrong():
    inputs = problem()
    loss = loss_of(*inputs)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    weighted = loss_of(*inputs) * inputs[4]
    gradient = torch.autograd.grad(weighted, inputs[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_have_the_dtypes_of_their_inputs_also_under_autocast(dtype):
    inputs = problem(dtype=dtype)
    leaves = [t for t in inputs if t.requires_grad]
    expected = torch.autograd.grad(loss_of(*inputs), leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(*inputs)
        found = torch.autograd.grad(loss, leaves)
    assert loss.dtype == torch.float32
    for leaf, one, other in zip(leaves, found, expected):
        assert one.dtype == leaf.dtype
        assert torch.equal(one, other)


def test_saved_memory_is_linear_in_the_inputs():
    inputs = problem(videos=48, groups=16, nouns=4, dim=16)
    saved = {}

    def remember(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        scores = grounding_scores(*inputs[:4], backend="fused")
        loss = loss_of(*inputs)
    arrays = inputs[0].nbytes + 2 * inputs[1].nbytes + 2 * scores.nbytes
    assert loss.requires_grad
    assert sum(saved.values()) < 2 * arrays
    dots = 48 * 16 * 48 * 4 * 4
    assert 2 * arrays < dots / 4


def test_workspace_bounds_the_chunk():
    layout = layout_of(torch.empty(4096, 32, 256).half(), torch.empty(4096, 4, 256).half())
    for budget in (64 << 20, 256 << 20, 512 << 20):
        videos = layout.videos_per_chunk(budget, 128)
        held = videos * 32 * (4096 * 4 * 2 + 256 * 4)
        assert budget / 2 < held <= budget
    assert layout.videos_per_chunk(1, 128) == 4
    assert layout.videos_per_chunk(1 << 50, 128) == 4096


def test_the_loss_takes_few_launches(monkeypatch):
    case = ops()["grounding"].cases["paper"]
    products = []
    monkeypatch.setattr(backward, "accumulate_product", lambda *a, **k: products.append(1))
    groups, nouns = (
        torch.empty(case["batch"], case[name], case["dim"], dtype=torch.bfloat16, device="meta")
        for name in ("groups", "nouns")
    )
    mask = torch.empty(case["batch"], case["nouns"], dtype=torch.bool, device="meta")
    beta = scale = torch.empty((), device="meta")
    with record_launches() as launches:
        _, scores, lse, pairs, tokens, rows, weights = function.loss_forward(
            groups, nouns, mask, beta, scale
        )
        forward_launches = len(launches)
        function.loss_backward(
            *(beta, scores, lse, pairs, tokens, rows, weights, beta, scale),
            *(case["groups"], case["nouns"], case["dim"], torch.bfloat16),
            *(True, True, True, True, 256 << 20),
        )
    # The product of the noun gradient is cut into parts by hand, so it is one launch as well. With
    # the seed gradient of `loss.backward()` these are nine.
    assert forward_launches == 4
    assert len(launches) + len(products) + 1 == 9


def test_compiles_in_one_graph():
    inputs = problem()
    leaves = [t for t in inputs if t.requires_grad]
    for eager in (loss_of, composed):
        torch.compiler.reset()
        compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
        expected, found = eager(*inputs), compiled(*inputs)
        assert torch.equal(expected, found)
        for one, other in zip(
            torch.autograd.grad(expected, leaves), torch.autograd.grad(found, leaves)
        ):
            assert torch.equal(one, other)


def operator_calls():
    groups, nouns, mask, beta, scale = (t.detach() for t in problem())
    valid = mask.any(1)
    loss, scores, lse, pairs, _, rows, weights = function.loss_forward(
        groups, nouns, mask, beta, scale
    )
    sizes = (8, 2, 16, torch.float16, True, False, True)
    return {
        "scores_forward": (groups, nouns, mask, beta),
        "scores_backward": (scores, groups, rows, weights, beta, *sizes, 1 << 20),
        "loss_forward": (groups, nouns, mask, beta, scale),
        "loss_backward": (
            *(loss, scores, lse, pairs, groups, rows, weights, beta, scale),
            *(*sizes, True, 1 << 20),
        ),
        "matrix_forward": (scores, scale, valid),
        "matrix_backward": (loss, scores, scale, valid, lse, pairs),
    }


@pytest.mark.parametrize("name", function._SIGNATURES)
def test_operators_pass_opcheck(name):
    operator = getattr(torch.ops.svilm_grounding, name).default
    torch.library.opcheck(
        operator, operator_calls()[name], test_utils=("test_schema", "test_faketensor")
    )


def test_what_the_kernels_cannot_take_is_said():
    groups, nouns, mask, beta, scale = problem()
    double = groups.double(), nouns.double(), mask, beta.double(), scale.double()
    with pytest.raises(RuntimeError, match=r"float64 is computed by the reference"):
        loss_of(*double)
    with pytest.raises(RuntimeError, match=r"groups are torch\.float32 and nouns"):
        loss_of(groups.float(), nouns, mask, beta, scale)
    with pytest.raises(RuntimeError, match="65 groups, 2 nouns and width 16 are beyond 64, 64"):
        loss_of(torch.zeros(6, 65, 16).half(), nouns, mask, beta, scale)
    with pytest.raises(RuntimeError, match=r"scores are torch\.float64"):
        matrix_infonce(torch.zeros(2, 2).double(), scale, backend="fused")
    assert grounding_loss(*double, backend="auto").dtype == torch.float64
