"""The kernels that keep one tile in shared memory: which calls they take, strips, planted bugs."""

import pytest
import torch

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.device import A100, B200, H200, DeviceTraits, assume_traits
from svilm_fast.kernels.infonce import infonce_partials
from svilm_fast.kernels.infonce.fused import backward, forward, function, layout, resident
from tests.bars import within

pytestmark = pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")
HALF, IDS = torch.float16, torch.zeros(3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("device", "dim", "dtype", "ids", "depth"),
    [
        (H200, 256, torch.bfloat16, None, 256),
        (H200, 208, HALF, None, 256),
        (H200, 192, HALF, None, None),
        (H200, 128, HALF, None, 128),
        (H200, 80, HALF, None, 128),
        (H200, 64, HALF, None, None),
        (H200, 272, HALF, None, None),
        (H200, 512, HALF, None, None),
        (H200, 128, torch.float32, None, None),
        (H200, 128, HALF, IDS, None),
        (A100, 128, HALF, None, None),
        (B200, 128, HALF, None, None),
    ],
)
def test_which_calls_they_take(device, dim, dtype, ids, depth):
    with assume_traits(device):
        tile = resident.resident_tile(torch.zeros(3, dim, dtype=dtype), ids)
    assert (tile and tile.depth) == depth


@pytest.mark.parametrize("strip", [1, 2, 5])
@pytest.mark.parametrize("name", ["random", "opposite"])
def test_strips_of_several_tiles(check, regime, poisoned_memory, monkeypatch, name, strip):
    """Alone, sizes that the interpreter can run give strips of one tile."""
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)
    monkeypatch.setattr(forward, "strip_row_tiles", lambda *_: strip)
    monkeypatch.setattr(backward, "strip_tiles", lambda *_: strip)
    check(*regime(name, 390, 80, HALF))


@pytest.mark.parametrize("dim", [80, 128, 208, 256])
@pytest.mark.parametrize("m, n, offset", [(140, 290, 133), (290, 140, -140)])
def test_widths_and_rectangles(check, rows, poisoned_memory, monkeypatch, m, n, offset, dim):
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)
    inputs = rows(m, dim, 0, torch.bfloat16), rows(n, dim, 1, torch.bfloat16), 10.0
    check(*inputs, options={"diagonal_offset": offset}, naive={"offset": offset})


@pytest.mark.parametrize("name", ["random", "opposite", "sharper"])
def test_sums_with_gradients_of_their_own(rows, regime, poisoned_memory, monkeypatch, name):
    monkeypatch.setattr(forward, "FEW_BLOCKS_PER_SM", 0)
    monkeypatch.setattr(forward, "strip_row_tiles", lambda *_: 2)
    monkeypatch.setattr(backward, "strip_tiles", lambda *_: 2)
    videos, texts, scale = regime(name, 260, 80, HALF)
    found = []
    for backend, dtype in (("fused", HALF), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in (videos, texts)]
        sums = infonce_partials(*leaves, torch.tensor(scale), backend=backend)
        weights = [torch.linspace(-1.0, 2.0, len(part)).to(part.dtype) for part in sums]
        total = sum((part * weight).sum() for part, weight in zip(sums, weights))
        found.append([*sums, *torch.autograd.grad(total, leaves)])
    for place, (one, other) in enumerate(zip(*found)):
        bar = 2e-5 if place < 3 else 2.0**-11 + 2.0**-22 * scale
        within((one.double() - other).norm(), bar * other.norm() + 1e-6, "partial sums")


def test_one_line_out_of_range_at_the_end_of_a_long_strip(check, rows, monkeypatch):
    """The flags of 66 tiles are more than one step of their loop reads."""
    monkeypatch.setattr(backward, "strip_tiles", lambda *_: 66)
    video, texts = rows(1, 80, 0, HALF), rows(66 * 128, 80, 1, HALF)
    texts[-1] = -video[0]
    check(video, texts, 100.0)


def test_strips_of_a_forward_pass_fill_whole_waves():
    """Texts of 32, 40 and 64 tiles; with the rule for two programs per SM, 4,096 pairs take 16."""
    for pairs, strip in ((4096, 8), (5120, 14), (8192, 16)):
        tiles = pairs // 128
        assert layout.strip_row_tiles(tiles, tiles, H200, True) == strip


BUGS = {
    "padded_rows_in_column_sums": (
        'tl.where(counted, base, float("-inf"))',
        "tl.where(counted, base, base)",
    ),
    "diagonal_tiles_counted_twice": ("(row < stop_row) & beside", "row < stop_row"),
    "sums_of_the_tile_after": (
        "row = first_row + row_tile * BLOCK_M",
        "row = first_row + tile * BLOCK_M",
    ),
    "sums_of_the_strip_before": ("number.to(tl.int64) * columns", "0 * columns"),
    "strip_of_sums_without_its_last_tile": ("end = stop + 1", "end = stop"),
    "strip_of_gradients_without_its_last_tile": ("end = last + 2", "end = last + 1"),
    "half_precision_logits": (
        "product = dots * 2",
        "product = (dots * 2).to(tl.float16).to(tl.float32)",
    ),
    "only_the_row_direction": (
        "row_factor[:, None] + column_factor[None, :] * lift",
        "2.0 * row_factor[:, None] + 0.0 * right_factor[None, :]",
    ),
    "halves_exchanged": ("tl.exp2(tl.fma(halves[half]", "tl.exp2(tl.fma(halves[1 - half]"),
    "factors_of_the_tile_after": (
        "left_factor, right_factor = next_left_factor, next_right_factor",
        "left_factor, right_factor = left_factor, next_right_factor",
    ),
    "flags_of_the_rows_only": ("mask=at < (last + 1) * FLAGS", "mask=at < 0"),
    "flags_of_the_columns_only": ("is_sound = tl.min(tl.load(row_flags), 0)", "is_sound = 1"),
    "tile_of_other_rows": ("out.store([row_start,", "out.store([0 * row_start,"),
    "products_accumulate_over_tiles": (
        "            dots = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)",
        "            dots = dots + 0.0",
    ),
}
FAST = ["sums_of_the_tile_after", "factors_of_the_tile_after", "flags_of_the_rows_only"]


@pytest.fixture
def protocol(check, regime, rows, monkeypatch):
    def run():
        with monkeypatch.context() as patch:
            patch.setattr(function.forward_kernels, "FEW_BLOCKS_PER_SM", 0)
            patch.setattr(function.forward_kernels, "strip_row_tiles", lambda *_: 2)
            patch.setattr(function.backward_kernels, "strip_tiles", lambda *_: 2)
            check(*regime("random", 300, 80, HALF))
            # Dots near one, few and large: rounding of any intermediate shows.
            check(*regime("half", 260, 80, HALF), options={"workspace_bytes": 1})
            for name in ("opposite", "sharper"):
                # The sum of one line is out of range, in turn that of a column and of a row.
                videos, texts, scale = regime(name, 260, 80, HALF)
                if name == "opposite":
                    check(videos, torch.cat((texts[:1], -texts[1:])), scale)
                    check(torch.cat((texts[:1], -texts[1:])), videos, scale)
                else:
                    check(videos, texts, scale)
            with assume_traits(DeviceTraits((9, 0), 1, 232_448, "one program at a time")):
                check(*regime("saturated", 260, 80, torch.bfloat16))

    return run


def caught(name, mutate, protocol):
    mutate(resident, dict([BUGS[name]]))
    with pytest.raises(AssertionError):
        protocol()


def test_the_real_code_passes(protocol, poisoned_memory):
    protocol()


@pytest.mark.parametrize("name", FAST)
def test_caught(name, mutate, protocol, plausible_memory):
    caught(name, mutate, protocol)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUGS if name not in FAST])
def test_caught_too(name, mutate, protocol, plausible_memory):
    caught(name, mutate, protocol)
