"""What only a GPU can show: the compiled kernels' numbers, graphs, memory, repeatability."""

import pytest
import torch

from svilm_fast.kernels.infonce import infonce, infonce_partials
from svilm_fast.kernels.infonce.fused import backward, forward, resident
from svilm_fast.kernels.slices import SlicePlan
from tests.kernels.infonce.gpu_inputs import leaves, on_gpu

pytestmark = pytest.mark.gpu
TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["flat", "random", "sharp", "half", "confident", "sharper"])
@pytest.mark.parametrize("batch, dim", [(1, 16), (127, 80), (1000, 256), (2049, 512)])
def test_against_float64(check, regime, name, batch, dim, dtype):
    check(*on_gpu(regime, name, batch, dim, dtype))


@pytest.mark.parametrize("name", ["random", "opposite", "saturated"])
@pytest.mark.parametrize(
    "batch, dim, strip",
    [(1300, 48, 1), (2049, 144, 3), (1300, 80, 1), (2049, 208, 3), (4097, 256, 16)],
)
def test_long_strips(check, regime, monkeypatch, name, batch, dim, strip):
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)
    monkeypatch.setattr(forward, "strip_row_tiles", lambda *_: strip)
    monkeypatch.setattr(backward, "strip_tiles", lambda *_: strip)
    for dtype in (torch.float16, torch.bfloat16):
        check(*on_gpu(regime, name, batch, dim, dtype))


def test_resident_and_streamed_operands_agree(rows, monkeypatch):
    inputs = leaves(rows, 16384, 256)
    found = torch.autograd.grad(infonce(*inputs, backend="fused"), inputs)
    monkeypatch.setattr(resident, "RESIDENT_DEPTHS", ())
    for one, other in zip(found, torch.autograd.grad(infonce(*inputs, backend="fused"), inputs)):
        assert (one - other).float().norm() <= 2.0**-7 * other.float().norm()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("mode", ["exclude", "share"])
def test_pair_ids(check, regime, mode, dtype):
    ids = torch.arange(1000, device="cuda") % 700
    check(
        *on_gpu(regime, "random", 1000, 256, dtype),
        options={"pair_ids": ids, "pair_mode": mode},
        naive={"video_ids": ids, "text_ids": ids, "pair_mode": mode},
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_chunks_and_rectangles(check, rows, dtype):
    options = {"diagonal_offset": 400, "workspace_bytes": 1 << 20}
    check(
        rows(1111, 128, 0, dtype).cuda(),
        rows(2222, 128, 1, dtype).cuda(),
        14.0,
        options=options,
        naive={"offset": 400},
    )


@pytest.mark.parametrize("slices", [1, 2])
def test_parts_of_three_ranks_are_the_whole_loss(rows, slices):
    world, local = 3, 700
    videos, texts, scale = inputs = leaves(rows, world * local, 256)
    row_lse, column_lse, positives = [], [], []
    for rank, own in enumerate(videos.split(local)):
        plan = SlicePlan(world, rank, local, slices)
        blocks = [
            infonce_partials(own, part, scale, diagonal_offset=offset, backend="fused")
            for part, offset in zip(plan.parts(texts), plan.diagonal_offsets)
        ]
        row_lse.append(torch.stack([block.row_lse for block in blocks]).logsumexp(0))
        column_lse.append(plan.in_rank_order([block.column_lse for block in blocks]))
        positives.append(blocks[0].positives)
    columns = torch.stack(column_lse).logsumexp(0)
    loss = (torch.cat(row_lse) + columns - 2 * torch.cat(positives)).mean() / 2
    whole = infonce(videos, texts, scale, backend="fused")
    torch.testing.assert_close(loss, whole, rtol=1e-4, atol=1e-5)
    for found, want in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(whole, inputs)):
        # bfloat16 gradients of up to three parts are added in bfloat16 here.
        assert (found - want).float().norm() <= 2.0**-6 * want.float().norm() + 1e-6


def test_fifty_runs_are_equal(rows):
    inputs = leaves(rows, 3000, 256)

    def run():
        loss = infonce(*inputs, backend="fused")
        return loss, *torch.autograd.grad(loss, inputs)

    first = run()
    for _ in range(50):
        assert all(torch.equal(once, again) for once, again in zip(first, run()))


@pytest.mark.parametrize("scale", [14.0, 1000.0])
def test_a_graph_replays_with_new_data(rows, capture, scale):
    videos, texts, _ = leaves(rows, 1000, 256)
    factor = torch.tensor(14.0, device="cuda", requires_grad=True)

    def step():
        loss = infonce(videos, texts, factor, backend="fused")
        return loss, *torch.autograd.grad(loss, (videos, texts, factor))

    _, captured, graph = capture(step)
    with torch.no_grad():
        # Scale 1000 takes the other reference; the graph was captured without it.
        factor.fill_(scale)
        videos.copy_(rows(1000, 256, 7, torch.bfloat16))
    graph.replay()
    for found, expected in zip(captured, step()):
        assert torch.equal(found, expected)


def test_no_host_synchronisation(rows):
    inputs = leaves(rows, 1000, 256)
    torch.autograd.grad(infonce(*inputs, backend="fused"), inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(infonce(*inputs, backend="fused"), inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("ids", [False, True])
def test_compiles_as_one_graph(rows, ids):
    inputs = leaves(rows, 1000, 256)
    pair_ids = torch.arange(1000, device="cuda") // 2 if ids else None

    def loss_of(videos, texts, scale):
        return 2 * infonce(videos, texts, scale, pair_ids=pair_ids, backend="fused")

    compiled = torch.compile(loss_of, fullgraph=True)(*inputs)
    expected = loss_of(*inputs)
    torch.testing.assert_close(compiled, expected)
    for found, want in zip(
        torch.autograd.grad(compiled, inputs), torch.autograd.grad(expected, inputs)
    ):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("workspace", [1 << 29, 1 << 30])
def test_extra_memory_stays_in_the_workspace(rows, workspace):
    inputs = leaves(rows, 32768, 512)
    outputs = sum(leaf.numel() * leaf.element_size() for leaf in inputs)
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = infonce(*inputs, backend="fused", workspace_bytes=workspace)
        torch.autograd.grad(loss, inputs)
        peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 1.05 * (workspace + outputs) + (64 << 20)
