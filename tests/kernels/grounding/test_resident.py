"""The kernels that keep nouns in shared memory: which calls they take, and their strips."""

import pytest
import torch
from torch.nn.functional import normalize

from svilm_fast.kernels import record_launches
from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.device import A100, B200, H200, assume_traits
from svilm_fast.kernels.grounding import grounding_loss, grounding_scores
from svilm_fast.kernels.grounding.fused import backward, forward, resident
from svilm_fast.kernels.grounding.fused.layout import layout_of
from svilm_fast.kernels.launch import power_of_two, strip_tiles

pytestmark = pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")


def tensors(videos=6, groups=8, nouns=2, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = [
        normalize(torch.randn(shape, generator=generator), dim=-1).half()
        for shape in ((videos, groups, dim), (videos, nouns, dim))
    ]
    mask = torch.ones(videos, nouns, dtype=torch.bool)
    mask[1], mask[2, 1:] = False, False
    return *found, mask, torch.tensor(7.0), torch.tensor(15.0)


def shifted(tensor):
    """The same values, 2 bytes past an aligned address."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    memory[1:] = tensor.flatten()
    return memory[1:].view(tensor.shape)


@pytest.mark.parametrize(
    ("device", "groups", "taken"),
    [
        (H200, torch.zeros(3, 8, 256).half(), True),
        (H200, torch.zeros(3, 8, 257).half(), False),
        (H200, torch.zeros(3, 8, 64), False),
        (H200, shifted(torch.zeros(3, 8, 64).half()), False),
        (A100, torch.zeros(3, 8, 64).half(), False),
        (B200, torch.zeros(3, 8, 64).half(), False),
    ],
)
def test_which_calls_they_take(device, groups, taken):
    layout = layout_of(groups, groups)
    with assume_traits(device):
        for gradient in (False, True):
            assert (resident.resident_tile(groups, layout, gradient=gradient) is not None) is taken


def test_tiles_are_narrow_where_groups_are_few():
    for number, columns in ((8, 64), (16, 64), (17, 128), (64, 128)):
        groups = torch.zeros(3, number, 64).half()
        layout = layout_of(groups, groups)
        assert resident.resident_tile(groups, layout, gradient=True).columns == columns
        assert resident.resident_tile(groups, layout, gradient=False).columns == 128


def test_both_launches_are_resident_on_hopper():
    groups, nouns, mask, beta, _ = (t.to("meta") for t in tensors())
    layout = layout_of(groups, nouns)
    with record_launches() as launches:
        _, rows, weights, _ = forward.prepare(groups, nouns, mask, layout)
        scores = forward.launch_scores(groups, rows, weights, beta, layout)
        needs = backward.Needs(True, True, True)
        prepared = backward.ForwardBuffers(groups.view(-1, 16), rows, weights)
        backward.backward(prepared, beta, layout, needs, torch.float16, scores, 1 << 20)
    names = {each.kernel.__name__ for each in launches}
    assert {"resident_scores_kernel", "resident_gradient_kernel"} <= names


def outcomes(groups, nouns, mask, beta, scale, **options):
    leaves = [t.detach().requires_grad_() for t in (groups, nouns, beta, scale)]
    loss = grounding_loss(leaves[0], leaves[1], mask, *leaves[2:], backend="fused", **options)
    scores = grounding_scores(leaves[0], leaves[1], mask, leaves[2], backend="fused")
    return scores.detach(), loss.detach(), *torch.autograd.grad(loss, leaves)


def agree(found, expected):
    for one, other in zip(found, expected):
        difference = (one.double() - other.double()).norm()
        assert difference <= 1e-3 * other.double().norm() + 1e-6


def test_memory_that_a_descriptor_cannot_address_takes_pointers(monkeypatch):
    groups, *rest = tensors(videos=21)
    expected = outcomes(groups, *rest)
    launched = []
    for name in ("resident_scores_kernel", "resident_gradient_kernel"):
        for module in (forward, backward):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, None)
                launched.append(name)
    assert len(launched) == 2
    agree(outcomes(shifted(groups), *rest), expected)


@pytest.mark.parametrize("lengths", [(1, 1), (2, 3), (100, 100)])
def test_strips_of_any_length(lengths, monkeypatch):
    inputs = tensors(videos=70, groups=8, dim=16)
    expected = outcomes(*inputs)
    monkeypatch.setattr(forward, "strip_tiles", lambda *_: lengths[0])
    monkeypatch.setattr(backward, "strip_tiles", lambda *_: lengths[1])
    found = outcomes(*inputs)
    assert torch.equal(found[0], expected[0])
    # Gradients of groups and nouns do not depend on strips; beta's and the scale's are sums.
    assert all(torch.equal(one, other) for one, other in zip(found[:4], expected[:4]))
    agree(found, expected)


@pytest.mark.parametrize("strip", [2, 7])
@pytest.mark.parametrize("groups", [16, 20, 40])
def test_strips_and_chunks_of_several_tiles_against_float64(
    failures_at, poisoned_memory, monkeypatch, groups, strip
):
    """Alone, sizes that the interpreter can run give strips of one tile."""
    for module in (forward, backward):
        monkeypatch.setattr(module, "strip_tiles", lambda *_: strip)
    sizes = {"groups": groups, "videos": 21, "dim": 32}
    assert failures_at(**sizes) == []
    # Chunks of 16 and 5 videos; a video needs bytes for its columns of 42 rows and for its sums.
    a_video = power_of_two(groups) * (21 * 2 * 2 + 32 * 4)
    layout = layout_of(torch.zeros(21, groups, 32).half(), torch.zeros(21, 2, 32).half())
    assert layout.videos_per_chunk(16 * a_video, 128) == 16
    assert failures_at(**sizes, workspace_bytes=16 * a_video) == []


@pytest.mark.parametrize("videos", [15, 16, 17, 63, 64, 65])
def test_sizes_around_a_tile(failures_at, poisoned_memory, videos):
    """128 columns are 16 videos of 8 groups, 128 rows are 64 captions of 2 nouns."""
    assert failures_at(videos=videos) == []


@pytest.mark.parametrize("dim", [16, 30, 64, 160, 192, 208, 256, 272])
@pytest.mark.parametrize("groups", [7, 20, 40])
def test_widths_and_groups(failures_at, poisoned_memory, dim, groups):
    options = {"groups": groups, "dim": dim, "nouns": 3, "counts": (3, 0, 1), "videos": 9}
    assert failures_at(**options) == []


@pytest.mark.parametrize("device", [A100, B200])
@pytest.mark.parametrize("name", ["plain", "padded groups", "sharp", "chunks", "flat"])
def test_pointer_kernels_in_half_precision(numerics, poisoned_memory, device, name):
    with assume_traits(device):
        assert list(numerics([name])) == []


@pytest.mark.parametrize(
    ("row_tiles", "column_tiles", "sm_count", "strips", "strip"),
    [
        # 128 rows of tiles are 97 % of the SMs; further strips would only add starts.
        (128, 1024, 132, 1, 1024),
        # 8 strips of 16 rows of tiles are one wave.
        (16, 256, 132, 8, 32),
        (1, 1, 132, 1, 1),
        (1, 10, 132, 10, 1),
        (132, 7, 132, 1, 7),
    ],
)
def test_strips_fill_waves(row_tiles, column_tiles, sm_count, strips, strip):
    found = strip_tiles(row_tiles, column_tiles, sm_count)
    assert (-(-column_tiles // found), found) == (strips, strip)
