"""Launches of the Gluon kernel on small blocks, interpreted and compared with float64."""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from svilm_fast.kernels.launch import power_of_two, record_launches
from tests.bars import SEED_OFFSET, within
from tests.kernels.gluon_bugs import comparing
from tests.kernels.gluon_interpreter import interpret

# In the tests a warp group has 16 rows, a tile 32 columns, and a step a depth of 16.
ROWS, COLUMNS, DEPTH = 16, 32, 16
LN_2 = math.log(2)


@dataclass(frozen=True)
class Block:
    """A launch on videos [start, start + chunk) and all captions; without `loss`, of the scores."""

    videos: int = 18
    captions: int = 7
    groups: int = 8
    nouns: int = 3
    dim: int = 48
    start: int = 0
    chunk: int | None = None
    strip: int = 5
    loss: bool = False
    beta: float = 10.0
    scale: float = 20.0
    write: bool = True
    need_beta: bool = True

    @property
    def padded_groups(self) -> int:
        return power_of_two(self.groups, 8)

    @property
    def padded_nouns(self) -> int:
        return power_of_two(self.nouns)

    @property
    def count(self) -> int:
        return self.chunk or self.videos - self.start

    @property
    def column_tiles(self) -> int:
        return -(-self.count * self.padded_groups // COLUMNS)

    @property
    def strips(self) -> int:
        return -(-self.column_tiles // self.strip)


# One program with five tiles, so that every stage of the ring is used again; 28 of 32 rows, and
# two of four videos in the last tile.
MAIN = Block()
LOSS = Block(videos=18, captions=18, loss=True, strip=3)
BLOCKS = {
    "one tile": Block(videos=4),
    "one video": Block(videos=1),
    "one caption": Block(captions=1, nouns=1),
    "only rows of one group": Block(captions=4),
    "loss": LOSS,
    "padded groups": Block(videos=9, groups=11),
    "tile of one video": Block(videos=5, groups=20),
    "strips": Block(videos=30, strip=2),
    "strips of one tile": Block(strip=1),
    "second chunk": Block(videos=18, captions=18, loss=True, start=8, chunk=7, strip=2),
    "last chunk": Block(videos=18, captions=18, loss=True, start=12),
    "width within a step": Block(dim=40),
    "one step": Block(dim=16),
    "beta fixed": Block(need_beta=False),
    "beta only": Block(write=False),
    "flat": Block(beta=0.0),
    "sharp": Block(beta=60.0, videos=18, captions=18, loss=True, scale=100.0),
}


@dataclass(frozen=True)
class Tensors:
    """The buffers of a block as `prepare` and the loss make them."""

    groups: torch.Tensor
    nouns: torch.Tensor
    weights: torch.Tensor
    pairs: torch.Tensor
    lse: torch.Tensor | None


def tensors(block):
    """Padding is zero; captions 2, 5, ... have no noun, and the video of such a pair no log sum."""
    generator = torch.Generator().manual_seed(SEED_OFFSET)

    def unit(*shape):
        return normalize(torch.randn(*shape, generator=generator), dim=-1).half()

    groups = torch.zeros(block.videos, block.padded_groups, block.dim, dtype=torch.float16)
    groups[:, : block.groups] = unit(block.videos, block.groups, block.dim)
    counts = torch.tensor([block.nouns, max(block.nouns - 1, 1), 0]).repeat(block.captions)
    present = torch.arange(block.padded_nouns) < counts[: block.captions, None]
    nouns = unit(block.captions, block.padded_nouns, block.dim) * present[:, :, None]
    weights = present.float() / present.sum(1, keepdim=True).clamp(min=1)
    pairs = torch.randn(block.videos, block.captions, generator=generator) * 0.3
    if not block.loss:
        return Tensors(groups, nouns, weights, pairs, None)
    logits, valid = pairs.double() * block.scale, present.any(1)
    lse = torch.stack((torch.logsumexp(logits[:, valid], 1), torch.logsumexp(logits, 0))) / LN_2
    lse[0, ~valid] = torch.inf
    return Tensors(groups, nouns, weights, pairs, lse.float())


def multiplier(block, given):
    """`finish.gradient_scale` in float64."""
    if not block.write:
        return 1.0
    bound = 2.0 + block.beta
    if not block.loss:
        bound = given.pairs.abs().max().item() * (1 + 0.5 * block.beta)
    return 2.0 ** math.floor(math.log2(32768 / bound))


@dataclass(frozen=True)
class Expected:
    """float64 results and the sizes of their terms."""

    gradient: torch.Tensor
    sizes: torch.Tensor
    beta: torch.Tensor
    beta_sizes: torch.Tensor
    scale: torch.Tensor
    scale_sizes: torch.Tensor


def expected(block, given):
    """The gradient [rows, columns] of a chunk and the partial sums [programs, 2]."""
    here = slice(block.start, block.start + block.count)
    pairs, weights = given.pairs.double()[here], given.weights.double()
    upstream, size = pairs, pairs.abs()
    if block.loss:
        lse, logits = given.lse.double(), pairs * block.scale / LN_2
        diagonal = torch.eye(block.videos)[here] * 2.0
        counted = weights.sum(1) > 0
        sums = torch.exp2(logits - lse[0, here, None]) + torch.exp2(logits - lse[1])
        upstream, size = (sums - diagonal) * counted, (sums + diagonal) * counted
    dots = torch.einsum("ckd,vgd->ckvg", given.nouns.double(), given.groups.double()[here])
    real = torch.arange(block.padded_groups) < block.groups
    beta = max(block.beta, 2.0**-30 * LN_2)
    share = torch.softmax((beta * dots).masked_fill(~real, -torch.inf), -1)
    centred = dots - (share * dots).sum(-1, keepdim=True)
    by_row = upstream.T[:, None, :, None] * weights[:, :, None, None] * share
    size_by_row = size.T[:, None, :, None] * weights[:, :, None, None] * share
    rows = block.captions * block.padded_nouns
    factor = multiplier(block, given)
    gradient = factor * by_row * (1 + block.beta * centred)
    sizes = factor * size_by_row * (1 + block.beta * centred.abs())

    def partial(terms):
        """Sums of [captions, nouns, videos] by program and warp group: [programs, 2]."""
        tiled = torch.zeros(
            -(-rows // (2 * ROWS)) * 2 * ROWS,
            block.strips * block.strip * COLUMNS // block.padded_groups,
            dtype=torch.float64,
        )
        tiled[:rows, : block.count] = terms.reshape(rows, block.count)
        tiled = tiled.view(-1, 2, ROWS, block.strips, tiled.shape[1] // block.strips)
        return tiled.sum((2, 4)).transpose(1, 2).reshape(-1, 2)

    once = torch.zeros(block.padded_nouns, dtype=torch.float64)
    once[0] = 1
    by_scale = (upstream * pairs).T[:, None] * once[:, None]
    return Expected(
        gradient.reshape(rows, -1),
        sizes.reshape(rows, -1),
        partial((by_row * centred**2).sum(-1)),
        partial((size_by_row * centred**2).sum(-1)),
        partial(by_scale),
        partial((size * pairs.abs()).T[:, None] * once[:, None]),
    )


def compare(block, wanted, found, sums):
    """Raise AssertionError where a result is wrong, or written although nobody needs it."""
    if block.write:
        # float32 in the tile, then rounded to float16.
        bar = (2**-11 + 2e-5) * wanted.sizes + 2**-25
        within((found.double() - wanted.gradient).abs(), bar, "gradient")
    else:
        assert found.isnan().all(), "written, although nobody needs it"
    for name, needed, partials, exact, sizes in (
        ("beta", block.need_beta, sums[0], wanted.beta, wanted.beta_sizes),
        ("scale", block.loss, sums[1], wanted.scale, wanted.scale_sizes),
    ):
        assert partials[:2].isnan().all(), f"{name}: another program's sums are written"
        if needed:
            difference = (partials[2:].view(-1, 2) - exact).abs()
            within(difference, 2e-5 * sizes + 1e-9, f"partial sums of {name}")
        else:
            assert partials.isnan().all(), f"{name}: written, although nobody needs it"


def check_gradient(monkeypatch, block, seed, module, stages):
    """Raise if a result is wrong or the schedule has a fault; returns logs and results."""
    monkeypatch.setattr(module, "ring_of", lambda _: (DEPTH, stages))
    monkeypatch.setattr(module, "GROUP_ROWS", ROWS)
    given = tensors(block)
    rows = block.captions * block.padded_nouns
    grid = -(-rows // (2 * ROWS)) * block.strips
    # A matrix of its own for the chunk, as in `backward`; the first program is number 1.
    found = torch.full((rows, block.count * block.padded_groups), torch.nan, dtype=torch.float16)
    sums = [torch.full((2 * grid + 2,), torch.nan) for _ in range(2)]
    largest = None if block.loss or not block.write else given.pairs.abs().max()
    with record_launches() as launches:
        module.launch_gradient(
            given.nouns.view(rows, -1),
            given.groups,
            (
                given.weights,
                torch.tensor(block.beta),
                given.pairs,
                torch.tensor(block.scale) if block.loss else None,
                given.lse,
                largest,
            ),
            found if block.write else None,
            tuple(sums),
            (
                block.captions,
                block.start,
                block.count,
                block.column_tiles,
                block.strips,
                block.strip,
                1,
            ),
            grid,
            COLUMNS,
            G=block.groups,
            PADDED_G=block.padded_groups,
            PADDED_K=block.padded_nouns,
            LOSS=block.loss,
            HALF=block.write,
            WRITE=block.write,
            NEED_BETA=block.need_beta,
            NEED_SCALE=block.loss,
        )
    (launch,) = launches
    logs = interpret(launch, seed + SEED_OFFSET)
    with comparing():
        compare(block, expected(block, given), found, sums)
    return logs, (found, *sums)
