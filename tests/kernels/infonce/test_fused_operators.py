"""The fused path as PyTorch sees it: operators, compile, autocast, memory, repeatability."""

import pytest
import torch

from svilm_fast.kernels import assume_traits, record_launches, use_backend
from svilm_fast.kernels.device import H200, DeviceTraits
from svilm_fast.kernels.infonce import infonce, infonce_partials
from svilm_fast.kernels.infonce.cases import VARIANTS
from svilm_fast.kernels.infonce.fused.layout import (
    DEFAULT_WORKSPACE_BYTES,
    backward_plan,
    default_workspace_bytes,
    tile_of,
)

HALF = torch.float16


def leaves(rows, batch=70, dtype=HALF):
    videos, texts = (rows(batch, 16, seed, dtype).requires_grad_() for seed in (0, 1))
    return videos, texts, torch.tensor(10.0, requires_grad=True)


def test_fake_implementations_agree_with_the_real_ones(rows):
    from svilm_fast.kernels.infonce.fused import function

    videos, texts, scale = (leaf.detach() for leaf in leaves(rows))
    ops = torch.ops.svilm_infonce
    ids = torch.arange(70, dtype=torch.int32) // 2
    for block in ((None, None, None), (ids, ids, None), (ids, ids, torch.full((70,), 0.5))):
        call = (videos, texts, scale, *block, 0)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(ops.forward.default, (*call, True), test_utils=tests)
        _, *logs = function.forward_op(*call, True)
        upstream = torch.ones(())
        for needs in ((True, True, True), (False, True, False)):
            arguments = (*call, *logs, upstream, *needs, 1 << 20)
            torch.library.opcheck(ops.loss_backward.default, arguments, test_utils=tests)
        vectors = (torch.ones(70), torch.ones(70), torch.ones(70))
        arguments = (*call, *logs, *vectors, True, False, True, 1 << 20)
        torch.library.opcheck(ops.partials_backward.default, arguments, test_utils=tests)


@pytest.mark.parametrize("ids", [None, torch.arange(70) // 2])
def test_compiles_as_one_graph(rows, ids):
    def loss_of(videos, texts, scale):
        return 2 * infonce(videos, texts, scale.exp(), pair_ids=ids, backend="fused")

    inputs = leaves(rows)
    inputs[2].data.fill_(2.0)
    expected = loss_of(*inputs)
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(compiled, expected)
    for found, want in zip(
        torch.autograd.grad(compiled, inputs), torch.autograd.grad(expected, inputs)
    ):
        assert torch.equal(found, want)


def test_partial_sums_compile_as_one_graph(rows):
    def total(videos, texts, scale):
        found = infonce_partials(videos, texts, scale, diagonal_offset=3, backend="fused")
        return found.row_lse.sum() + found.column_lse.square().sum() - found.positives.sum()

    inputs = leaves(rows)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")(*inputs)
    for found, want in zip(
        torch.autograd.grad(compiled, inputs), torch.autograd.grad(total(*inputs), inputs)
    ):
        torch.testing.assert_close(found, want)


def test_autocast_changes_nothing(rows):
    inputs = leaves(rows, dtype=torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = infonce(*inputs, backend="fused")
            results.append((loss, *torch.autograd.grad(loss, inputs)))
    for plain, cast in zip(*results):
        assert plain.dtype == torch.float32
        assert torch.equal(plain, cast)


def test_repeats_bit_for_bit(rows):
    inputs = leaves(rows)

    def run():
        loss = infonce(*inputs, backend="fused")
        return loss, *torch.autograd.grad(loss, inputs)

    first = run()
    for _ in range(4):
        assert all(torch.equal(once, again) for once, again in zip(first, run()))


def test_no_gradient_no_graph(rows):
    inputs = leaves(rows)
    with torch.no_grad(), use_backend("fused"):
        loss = infonce(*inputs)
    assert not loss.requires_grad
    assert torch.equal(loss, infonce(*inputs, backend="fused").detach())


def test_saves_nothing_quadratic(rows):
    inputs, saved = leaves(rows, 600), {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        infonce(*inputs, backend="fused")
    embeddings = 2 * inputs[0].numel() * inputs[0].itemsize
    assert embeddings < sum(saved.values()) <= embeddings + 20 * 4 * 640


PLANS = [
    # dim, workspace, least share of the chunk's time in which dV = dS T uses every SM
    (256, None, 0.9),
    (256, 2 << 30, 0.95),
    (512, 1 << 30, 0.95),
    (512, 2 << 30, 0.95),
    (768, 2 << 30, 0.95),
]


def embeddings(rows, dim, dtype=torch.bfloat16):
    return torch.empty(rows, dim, dtype=dtype, device="meta")


@pytest.mark.parametrize("dim, workspace, busy", PLANS)
def test_chunks_fit_the_workspace_and_fill_the_gpu(dim, workspace, busy):
    videos = embeddings(65536, dim)
    budget = workspace or default_workspace_bytes(videos, videos)
    rows, splits = backward_plan(videos, videos, tile_of(videos), (True, True), budget)
    assert rows % 128 == 0
    # The gradient, its fp16 factors, fp32 sums of both sides, the workspace of cuBLAS and the logs.
    held = 2 * rows * 65536 + 2 * 2 * 65536 * dim + 4 * dim * (65536 + splits * rows)
    held += (32 << 20) + 16 * 2 * 65536
    assert 0.6 * budget < held <= budget
    tiles = rows // 128 * -(-dim // 256) * splits
    assert tiles / (-(-tiles // 132) * 132) >= busy
    assert backward_plan(videos, videos, tile_of(videos), (True, True), 1) == (128, 1)


@pytest.mark.parametrize("columns", [512, 2048, 65536])
def test_short_sums_are_not_split(columns):
    texts = embeddings(columns, 256)
    for videos in (embeddings(1024, 256), embeddings(8192, 256, torch.float32)):
        plan = backward_plan(videos, texts.to(videos.dtype), tile_of(videos), (True, True), 1 << 30)
        assert plan.splits <= max(1, columns // 1024)
    # Nothing is split where dV is not computed.
    only_texts = backward_plan(embeddings(1024, 256), texts, tile_of(texts), (False, True), 1 << 30)
    assert only_texts == (1024, 1)


@pytest.mark.parametrize("rows, columns, dim", [(65536, 65536, 1024), (4096, 524_288, 512)])
def test_the_default_workspace_holds_two_thousand_rows(rows, columns, dim):
    videos, texts = embeddings(rows, dim), embeddings(columns, dim)
    budget = default_workspace_bytes(videos, texts)
    plan = backward_plan(videos, texts, tile_of(videos), (True, True), budget)
    assert 1024 <= plan.rows <= 2048
    small = embeddings(1000, 256)
    assert default_workspace_bytes(small, small) == DEFAULT_WORKSPACE_BYTES


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.label)
def test_host_code_runs_without_data(variant):
    with assume_traits(H200), record_launches() as launches:
        variant.run()
    names = {launch.kernel.fn.__name__ for launch in launches}
    if "gluon" in variant.label:  # only the kernels that it adds
        assert names == {"gluon_sums_kernel", "gluon_gradient_kernel"}
    else:
        resident = variant.label.startswith(("bf16 D256", "fp16 D128"))
        gradient = "resident_gradient_kernel" if resident else "dots_gradient_kernel"
        assert {"sums_kernel", "finish_kernel", gradient} <= names
        assert ("resident_sums_kernel" in names) == resident


def test_small_calls_take_few_launches():
    from svilm_fast.kernels.infonce.fused.backward import backward
    from svilm_fast.kernels.infonce.fused.forward import CallTensors, forward

    videos = torch.empty(1000, 256, dtype=torch.bfloat16, device="meta")
    block = CallTensors(videos, videos, torch.empty((), device="meta"), None, None, None, 0)
    with assume_traits(H200), record_launches() as launches:
        _, logs = forward(block, with_loss=True)
        assert len(launches) == 3
        upstream = torch.empty((), device="meta")
        backward(block, logs, 1000, upstream, (True, True, True), 1 << 29)
    assert len(launches) == 3 + 5


@pytest.mark.parametrize(
    "embeddings, capability, reason",
    [
        (torch.zeros(4, 24), (9, 0), "multiple of 16 up to 1024, got 24"),
        (torch.zeros(4, 1040), (9, 0), "multiple of 16 up to 1024, got 1040"),
        (torch.zeros(4, 16, dtype=torch.float64), (9, 0), "float64 has no tensor-core path"),
        (torch.zeros(4, 16), (10, 0), "would round fp32 products to tf32"),
    ],
)
def test_what_the_kernels_refuse(embeddings, capability, reason):
    import triton

    if capability == (10, 0) and not triton.__version__.startswith(("3.6", "3.7", "3.8")):
        pytest.skip("this Triton multiplies fp32 exactly there")
    with assume_traits(DeviceTraits(capability, 132, 232_448, "a GPU")):
        with pytest.raises(RuntimeError, match=reason):
            infonce(embeddings, embeddings, 1.0, backend="fused")
        assert torch.isfinite(infonce(embeddings, embeddings, 1.0))
