"""The numerics protocol catches every planted bug, and none in the real code."""

import pytest
import torch

from svilm_fast.kernels import primitives
from svilm_fast.kernels.device import DeviceTraits, assume_traits
from svilm_fast.kernels.infonce.fused import (
    backward,
    finish,
    forward,
    function,
    gradient,
    layout,
    tiles,
)

HALF = torch.float16
IDS = torch.arange(130) % 60

# name -> module, text, a plausible mistake instead
BUGS = {
    # The sums.
    "padded_columns_in_row_sums": (forward, "if RAGGED:", "if False:"),
    "padded_rows_in_column_sums": (
        forward,
        'tl.where(counted, base, float("-inf"))',
        "tl.where(counted, base, base)",
    ),
    "natural_exponent_as_binary": (
        forward,
        "tl.load(scale).to(tl.float32) * LOG2_E",
        "tl.load(scale).to(tl.float32)",
    ),
    "positives_counted_twice": (forward, 'if TILES != "beside" and not SHARE:', "if False:"),
    "diagonal_tiles_counted_twice": (
        forward,
        "counted & ((row_tile < lowest) | (row_tile > highest))",
        "counted & (row_tile >= 0)",
    ),
    "diagonal_overwrites_the_strip": (forward, "total += tl.load(at,", "total += 0 * tl.load(at,"),
    "diagonal_of_another_strip": (forward, "number = lowest // strip", "number = lowest"),
    "diagonal_of_the_wrong_column": (
        forward,
        "on_diagonal = (row + offset)[:, None]",
        "on_diagonal = (row - offset)[:, None]",
    ),
    "half_precision_logits": (
        forward,
        "tl.exp2(tl.fma(dots, slope,",
        "tl.exp2(tl.fma(dots.to(tl.float16).to(tl.float32), slope,",
    ),
    "half_precision_sums": (
        forward,
        "tl.store(row_sums + partial_at + row, tl.sum(power, 1),",
        "tl.store(row_sums + partial_at + row, (tl.sum(power * 2.0**-100, 1)).to(tl.float16)"
        ".to(tl.float32) * 2.0**100,",
    ),
    "excluded_pairs_stay": (forward, "power = tl.where(same, 0.0, power)", "power = power"),
    "last_chunk_of_columns_wins": (forward, "running=start > 0", "running=False"),
    # Logarithms and loss.
    "no_range_check": (finish, "if any_broken > 0:", "if any_broken < 0:"),
    "other_reference_sees_padding": (
        finish,
        "tl.where((index < other_count)[None, :], dots * slope",
        "tl.where((index >= 0)[None, :], dots * slope",
    ),
    "positive_of_the_wrong_row": (tiles, "partner = line + shift", "partner = line - shift"),
    "confident_loss_by_difference": (
        finish,
        "near = in_range & (term < 8.0)",
        "near = term < -1.0",
    ),
    "mean_over_the_wrong_number": (forward, "(2 * (stop - start))", "(2 * rows)"),
    # The gradient.
    "only_the_row_direction": (
        gradient,
        "(row_factor[:, None] + column_factor[None, :])",
        "(2.0 * row_factor[:, None] + 0.0 * column_factor[None, :])",
    ),
    "half_precision_powers": (
        gradient,
        "power = tl.exp2(tl.fma(halves[half], slope, -slope + OFFSET))",
        "power = tl.exp2((tl.fma(halves[half], slope, -slope)).to(tl.float16).to(tl.float32)"
        " + OFFSET)",
    ),
    "halves_exchanged": (gradient, "halves[half], slope", "halves[1 - half], slope"),
    "first_tile_of_a_program_only": (
        gradient,
        "row_tiles * column_tiles, tl.num_programs(0),",
        "row_tiles * column_tiles, row_tiles * column_tiles,",
    ),
    "flags_of_the_rows_only": (
        gradient,
        "tl.minimum(tl.min(row_flags, 0), tl.min(tl.load(sound + column_blocks), 0))",
        "tl.min(row_flags, 0)",
    ),
    "one_power_out_of_range": (finish, "(any_broken == 0).to(tl.int32)", "1"),
    "positives_forgotten": (backward, "if shared or", "if not shared or"),
    "positive_rounded_before_the_difference": (
        gradient,
        "gradient -= of_row * tl.load(others + row, mask=inside, other=0.0)",
        "gradient -= (of_row * tl.load(others + row, mask=inside, other=0.0) - 1.0)"
        ".to(tl.float16).to(tl.float32) + 1.0",
    ),
    "gradient_not_lifted": (backward, "LIFT = 2.0**14", "LIFT = 1.0"),
    "gradient_in_bfloat16": (backward, "torch.float16 if half", "torch.bfloat16 if half"),
    "sums_in_bfloat16": (
        primitives,
        "add(out, left, right, beta=0 if first else 1, out=out)",
        "out.copy_(add(out, left, right, beta=0 if first else 1).bfloat16())",
    ),
    "chunks_not_accumulated": (backward, "first=start == 0", "first=True"),
    "chunk_of_the_wrong_rows": (
        backward,
        "video_factors[start:stop]",
        "video_factors[: stop - start]",
    ),
    "one_part_of_the_sum": (gradient, "tl.range(1, splits)", "tl.range(1, 1)"),
    "columns_beyond_the_parts_dropped": (backward, "if whole < left.shape[1]:", "if False:"),
    "upstream_gradient_ignored": (
        gradient,
        "factor = tl.load(upstream).to(tl.float32) / lift",
        "factor = 1.0 / lift",
    ),
    "scale_gradient_times_scale": (
        gradient,
        "tl.store(parts + pid, product * factor)",
        "tl.store(parts + pid, product * scaled)",
    ),
    "excluded_pairs_get_gradient": (
        gradient,
        "gradient = tl.where(same & (diagonal == 0), 0.0, gradient)",
        "gradient = gradient + 0.0",
    ),
    "shared_target_not_divided": (
        gradient,
        "positive *= tl.load(weights + row, mask=row < stop_row, other=0.0) * lift",
        "positive *= lift",
    ),
}
# Silent ones first, one for each kind of test that catches them.
FAST = [
    "padded_columns_in_row_sums",
    "diagonal_tiles_counted_twice",
    "first_tile_of_a_program_only",
    "columns_beyond_the_parts_dropped",
    "no_range_check",
    "positive_rounded_before_the_difference",
    "gradient_not_lifted",
    "chunk_of_the_wrong_rows",
    "excluded_pairs_get_gradient",
]


@pytest.fixture
def protocol(check, regime, rows, monkeypatch):
    """Small cases, one per property that the bugs break; raises where one fails."""

    def run():
        ids = {"video_ids": IDS, "text_ids": IDS}
        check(*regime("random", 130, 16, HALF))
        check(*regime("saturated", 70, 32, torch.bfloat16))
        # Most of a saturated gradient is below fp16's normal numbers.
        check(*regime("saturated", 70, 32, HALF))
        check(*regime("confident", 70, 32, torch.float32))
        check(*regime("sharper", 70, 16, HALF))
        # The sum of one column is out of range, those of all rows are not.
        videos, texts, scale = regime("opposite", 70, 16, HALF)
        check(videos, torch.cat((texts[:1], -texts[1:])), scale)
        for mode in ("exclude", "share"):
            check(
                *regime("random", 130, 16, HALF),
                options={"pair_ids": IDS, "pair_mode": mode},
                naive=ids | {"pair_mode": mode},
            )
        check(
            rows(70, 16, 0, HALF),
            rows(140, 16, 1, HALF),
            10.0,
            options={"diagonal_offset": 100},
            naive={"offset": 100},
        )
        with monkeypatch.context() as patch:
            patch.setattr(layout, "ROW_SUM_BYTES", 1)
            patch.setattr(layout, "MAX_STRIP_TILES", 1)
            # Of the module in use, which a planted bug replaces.
            patch.setattr(function.forward_kernels, "FEW_BLOCKS_PER_SM", 0)
            with assume_traits(DeviceTraits((9, 0), 1, 232_448, "two programs at a time")):
                check(*regime("random", 260, 16, HALF), options={"workspace_bytes": 1})
            # Dots near one, few and large: rounding of any intermediate shows.
            check(*regime("half", 300, 64, torch.float32), options={"workspace_bytes": 1})
        with monkeypatch.context() as patch:
            # Two strips of two tiles, and parts of the sum over the columns.
            patch.setattr(function.forward_kernels, "strip_row_tiles", lambda *_: 2)
            patch.setattr(function.forward_kernels, "FEW_BLOCKS_PER_SM", 0)
            patch.setattr(layout, "LEAST_SPLIT_DEPTH", 64)
            check(*regime("random", 390, 16, HALF))

    return run


def caught(name, mutate, protocol):
    module, old, new = BUGS[name]
    mutate(module, {old: new})
    with pytest.raises(AssertionError):
        protocol()


def test_the_real_code_passes(protocol, poisoned_memory):
    protocol()


@pytest.mark.parametrize("name", FAST)
def test_caught(name, mutate, protocol, poisoned_memory):
    caught(name, mutate, protocol)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUGS if name not in FAST])
def test_caught_too(name, mutate, protocol, poisoned_memory):
    caught(name, mutate, protocol)
