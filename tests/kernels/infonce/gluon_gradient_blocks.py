"""Launches of the Gluon gradient on small blocks, interpreted and compared with float64."""

from dataclasses import dataclass

import torch

from svilm_fast.kernels.device import DeviceTraits, assume_traits
from svilm_fast.kernels.launch import record_launches
from tests.bars import SEED_OFFSET, within
from tests.kernels.gluon_bugs import comparing
from tests.kernels.gluon_interpreter import interpret

# Videos per product, texts per tile, lines per flag.
ROWS, COLUMNS, LINES = 64, 16, 16
LIFT = 2.0**14


@dataclass(frozen=True)
class GradientBlock:
    """A launch on rows [start, stop) of the videos, in a buffer of `held` rows.

    `lost` are the blocks of LINES lines, rows before columns, whose sums are out of range.
    """

    rows: int
    columns: int
    dim: int = 48
    start: int = 0
    stop: int = 0
    held: int = 0
    offset: int = 0
    programs: int = 2
    scale: float = 10.0
    lost: tuple[int, ...] = ()
    loss: bool = True
    dtype: torch.dtype = torch.float16


# Two programs of 7 and 8 products: 5 of each tile of texts, both groups in every tile.
MAIN = GradientBlock(300, 48)
BLOCKS = {
    "one row and column": GradientBlock(1, 1, programs=1),
    "one product more than programs": GradientBlock(193, 16, programs=3),
    "texts change at every product": GradientBlock(40, 96),
    "texts change at every second product": GradientBlock(100, 80, programs=1),
    "one group alone in a tile": GradientBlock(130, 64, programs=5),
    "second chunk, in a larger buffer": GradientBlock(300, 32, start=128, held=192),
    "chunk in the middle": GradientBlock(300, 32, start=128, stop=256),
    "ragged columns and width": GradientBlock(150, 40, dim=40),
    "lost rows": GradientBlock(200, 32, lost=(0, 7)),
    "lost columns": GradientBlock(200, 48, lost=(17,)),
    "all lost, upstream given": GradientBlock(150, 32, lost=tuple(range(18)), loss=False),
    "lost rows, upstream given": GradientBlock(150, 32, lost=(2,), loss=False),
    "pairs of some lines": GradientBlock(150, 40, offset=-120, lost=tuple(range(20))),
    "pairs of some columns": GradientBlock(100, 64, offset=30, lost=tuple(range(12))),
    "bfloat16": GradientBlock(150, 32, scale=14.0, dtype=torch.bfloat16),
}


def padded(lines):
    """Lines up to whole tiles of 128, as in `forward.Logs`."""
    return -(-lines // 128) * 128


def lines_of(block):
    """Logarithms, factors, flags and upstream of rows and columns, which agree nowhere.

    A product that takes the wrong path therefore gives another gradient. Factors of lost lines are
    NaN.
    """
    first = padded(block.rows)
    total = first + padded(block.columns)
    generator = torch.Generator().manual_seed(2 + SEED_OFFSET)
    logs = -2 - 3 * torch.rand(total, generator=generator)
    factors = torch.exp2(1 + 3 * torch.rand(total, generator=generator) - 100)
    upstream = 2 * torch.rand(total, generator=generator) - 1
    for start, count in ((0, block.rows), (first, block.columns)):
        padding = slice(start + count, start + padded(count))
        for lines in (logs, factors, upstream):
            lines[padding] = 0
    sound = torch.ones(total // LINES, dtype=torch.int32)
    sound[list(block.lost)] = 0
    factors[(sound == 0).repeat_interleave(LINES)] = torch.nan
    # A line whose pairs are all excluded has no sum.
    logs[0] = -torch.inf
    return logs, factors, sound, None if block.loss else upstream


def expected_gradient(videos, texts, lines, block):
    """[rows, columns] in float64, and the size of its terms, which may cancel."""
    logs, factors, sound, upstream = lines
    first = padded(block.rows)
    slope = block.scale / torch.log(torch.tensor(2.0, dtype=torch.float64))
    exponent = slope * (videos.double() @ texts.double().T - 1)
    row, column = torch.arange(block.rows), torch.arange(block.columns)
    if upstream is None:
        upstream = torch.zeros_like(logs)
        upstream[row] = ((row + block.offset >= 0) & (row + block.offset < block.columns)).float()
        of_column = (column - block.offset >= 0) & (column - block.offset < block.rows)
        upstream[first + column] = of_column.float()

    def one(at):
        log = logs[at].double()
        return log.where(log > -torch.inf, torch.inf), factors[at].double(), upstream[at].double()

    (row_log, row_factor, row_upstream), (column_log, column_factor, column_upstream) = (
        one(row),
        one(first + column),
    )
    fast = torch.exp2(exponent + 100) * (row_factor[:, None] + column_factor)
    of_row = torch.exp2(exponent - row_log[:, None]) * row_upstream[:, None]
    of_column = torch.exp2(exponent - column_log) * column_upstream
    # Both paths are chosen by product: by the blocks of lines in its rows and in its tile of texts.
    product_row = block.start + (row - block.start) // ROWS * ROWS
    tile_column = first + column // COLUMNS * COLUMNS
    row_flags = [sound[(product_row + at) // LINES] for at in range(0, ROWS, LINES)]
    column_flags = [sound[(tile_column + at) // LINES] for at in range(0, COLUMNS, LINES)]
    is_sound = torch.stack(row_flags).amin(0)[:, None] * torch.stack(column_flags).amin(0)
    exact = of_row + of_column
    gradient = LIFT * torch.where(is_sound == 1, fast, exact)
    return gradient, LIFT * torch.where(is_sound == 1, fast, of_row.abs() + of_column.abs())


def close(found, expected, size):
    # Rounding to float16, and that of fp32 logits and powers.
    bar = 2.0**-11 * expected.abs() + 2.0**-18 * size + 2.0**-25
    within((found.double() - expected).abs(), bar, "gradient")


def check_gradient(rows, monkeypatch, block, seed, module, stages):
    """Raise if the gradient is wrong or the schedule has a fault; returns the programs' logs."""
    sizes = {"DEPTH": 16, "STAGES": stages, "BLOCK_N": COLUMNS, "LINES": LINES}
    for name, value in sizes.items():
        monkeypatch.setattr(module, name, value)
    videos = rows(block.rows, block.dim, 0, block.dtype)
    texts = rows(block.columns, block.dim, 1, block.dtype)
    lines = lines_of(block)
    stop = block.stop or block.rows
    number = stop - block.start
    # Row strides of whole blocks of 64 columns, as backward allocates.
    width = -(-block.columns // 64) * 64
    out = torch.full((block.held or number, width), torch.nan, dtype=torch.float16)
    gpu = DeviceTraits((9, 0), block.programs, 232_448, "a GPU with few SMs")
    with assume_traits(gpu), record_launches() as launches:
        module.launch_gradient(
            videos,
            texts,
            torch.tensor(block.scale),
            lines,
            out,
            (
                block.start,
                stop,
                block.rows,
                block.columns,
                block.offset,
                padded(block.rows) // LINES,
            ),
            LIFT,
        )
    (launch,) = launches
    logs = interpret(launch, seed + SEED_OFFSET)
    expected = (part[block.start : stop] for part in expected_gradient(videos, texts, lines, block))
    tiles = -(-block.columns // COLUMNS) * COLUMNS
    with comparing():
        close(out[:number, : block.columns], *expected)
        assert out[:, tiles:].isnan().all(), "columns past the last tile are written"
    return logs
