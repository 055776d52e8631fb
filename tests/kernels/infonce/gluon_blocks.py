"""Launches of the Gluon kernel on small blocks, interpreted and compared with float64."""

import inspect
from dataclasses import dataclass

import torch

from svilm_fast.kernels.infonce.fused import gluon_ring
from svilm_fast.kernels.infonce.fused.layout import InfonceTile
from svilm_fast.kernels.launch import record_launches
from tests.bars import SEED_OFFSET, within
from tests.kernels.gluon_bugs import comparing
from tests.kernels.gluon_interpreter import interpret

TILE = InfonceTile(128, 16, 16, 4, 4, True)


@dataclass(frozen=True)
class Block:
    """A launch on rows [start, stop) of `rows` videos and 16 texts per column tile."""

    rows: int
    columns: int = 16
    dim: int = 48
    start: int = 0
    offset: int = 10_000
    strip: int = 3
    scale: float = 10.0
    wide: bool = False
    dtype: torch.dtype = torch.float16


# Five products of 64 rows, so both groups come back to a stage of the ring.
MAIN = Block(300)
BLOCKS = {
    "one row": Block(1),
    "less than a product": Block(63),
    "whole tiles": Block(256, 32),
    "one product more": Block(129),
    "strips": Block(500, 32, strip=1),
    "last strip of one row": Block(257, strip=1),
    "second chunk": Block(420, start=128, strip=2),
    "products of 128 rows": Block(300, wide=True),
    "ragged products of 128 rows": Block(129, dim=40, wide=True),
    "width within a block": Block(150, dim=40),
    "diagonal": Block(300, 64, offset=0),
    "diagonal's last rows": Block(300, 32, offset=-247),
    "diagonal of a chunk": Block(420, 48, start=128, offset=-250, strip=2),
    "bfloat16": Block(150, dtype=torch.bfloat16, scale=14.0),
}


def expected_sums(videos, texts, block):
    """Row sums [column tiles, rows] and column sums [strips, columns] in float64.

    NaN where the launch writes nothing: row sums of tiles that meet the diagonal.
    """
    rows, columns = block.rows - block.start, block.columns
    slope = block.scale / torch.log(torch.tensor(2.0, dtype=torch.float64))
    dots = videos[block.start :].double() @ texts.double().T
    powers = torch.exp2(slope * (dots - 1) + 100)
    strips = -(-rows // (block.strip * 128))
    row_sums = torch.full((columns // 16, rows), torch.nan, dtype=torch.float64)
    column_sums = torch.zeros(strips, columns, dtype=torch.float64)
    for first in range(0, columns, 16):
        here = slice(first, first + 16)
        for top in range(0, rows, 128):
            tile = slice(top, min(top + 128, rows))
            shift = block.start + block.offset
            if tile.start + shift < first + 16 and tile.stop + shift > first:
                continue
            row_sums[first // 16, tile] = powers[tile, here].sum(1)
            column_sums[top // 128 // block.strip, here] += powers[tile, here].sum(0)
    return row_sums, column_sums


def close(found, expected, what):
    assert torch.equal(found.isnan(), expected.isnan()), f"{what}: elements written"
    there = ~expected.isnan()
    # The bar of log-sums: README, "Limits".
    within((found - expected)[there].abs(), 2e-5 * expected[there], what)


def check_sums(rows, monkeypatch, block, seed, module, stages):
    """Raise if the sums are wrong or the schedule has a fault; returns the programs' logs."""
    monkeypatch.setattr(module, "DEPTH", 16)
    monkeypatch.setattr(module, "STAGES", stages)
    monkeypatch.setattr(gluon_ring, "WIDE_STAGES_DIM", 512 if block.wide else 0)
    videos = rows(block.rows, block.dim, 0, block.dtype)
    texts = rows(block.columns, block.dim, 1, block.dtype)
    tiles, number = block.columns // 16, block.rows - block.start
    strips = -(-number // (block.strip * 128))
    found = (
        torch.full((tiles, number), torch.nan),
        torch.full((strips, block.columns), torch.nan),
    )
    with record_launches() as launches:
        module.launch_sums(
            videos,
            texts,
            torch.tensor(block.scale),
            found,
            TILE,
            (block.start, block.rows),
            0,
            tiles,
            block.offset,
            strips,
            block.strip,
        )
    (launch,) = launches
    logs = interpret(launch, seed + SEED_OFFSET)
    wanted = expected_sums(videos, texts, block)
    with comparing():
        close(found[0], wanted[0], "row sums")
        close(found[1], wanted[1], "column sums")
    return logs


def planted(mutate, module, replaced):
    """The kernel's module to test, with mistakes in it or in the module that both kernels share."""
    if all(text in inspect.getsource(gluon_ring) for text in replaced):
        mutate(gluon_ring, replaced)
        return module
    return mutate(module, replaced)
