"""Philox in PyTorch equals Triton's generator bit for bit, and published known answers."""

import pytest
import torch
import triton
import triton.language as tl

from svilm_fast.core.philox import (
    Site,
    StepSeeds,
    _rounds,
    derive_seeds,
    philox4x32,
    uniform,
    uniform4,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEEDS = [0, 1, -1, 2**31 - 1, 2**31, 2**62 + 12345, -(2**63), 2**63 - 1]


@triton.jit
def rand_kernel(seeds, offsets, single, four, words, N: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, N)
    seed = tl.load(seeds + row)
    offset = tl.load(offsets + columns)
    tl.store(single + row * N + columns, tl.rand(seed, offset))
    u0, u1, u2, u3 = tl.rand4x(seed, offset)
    w0, w1, w2, w3 = tl.randint4x(seed, offset)
    base = (row * N + columns) * 4
    tl.store(four + base, u0)
    tl.store(four + base + 1, u1)
    tl.store(four + base + 2, u2)
    tl.store(four + base + 3, u3)
    tl.store(words + base, w0)
    tl.store(words + base + 1, w1)
    tl.store(words + base + 2, w2)
    tl.store(words + base + 3, w3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_equals_triton_bit_for_bit(dtype):
    n = 64
    seeds = torch.tensor(SEEDS, device=DEVICE)
    generator = torch.Generator().manual_seed(1)
    high = 2**31 - 1 if dtype == torch.int32 else 2**62
    offsets = torch.randint(0, high, (n,), generator=generator, dtype=dtype).to(DEVICE)
    offsets[:3] = torch.tensor([0, 1, 2**31 - 1], dtype=dtype)
    b = len(SEEDS)
    single = torch.empty(b, n, device=DEVICE)
    four = torch.empty(b, n, 4, device=DEVICE)
    words = torch.empty(b, n, 4, device=DEVICE, dtype=torch.int32)
    rand_kernel[(b,)](seeds, offsets, single, four, words, N=n)
    assert torch.equal(uniform(seeds, offsets.long()), single)
    assert torch.equal(uniform4(seeds, offsets.long()), four)
    ours = torch.stack(philox4x32(seeds[:, None], offsets.long()), -1)
    assert torch.equal(ours, words.long() & 0xFFFFFFFF)


def test_known_answers_of_the_random123_paper():
    def words(*values):
        return tuple(torch.tensor([value]) for value in values)

    ones = 0xFFFFFFFF
    zeros = _rounds(words(0, 0, 0, 0), words(0, 0))
    full = _rounds(words(ones, ones, ones, ones), words(ones, ones))
    assert [int(w) for w in zeros] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(w) for w in full] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_uniform_accepts_a_counter_row_per_seed():
    seeds = torch.tensor([3, 4])
    counters = torch.tensor([[5, 6, 7], [7, 6, 5]])
    rows = uniform(seeds, counters)
    for row in range(2):
        assert torch.equal(rows[row], uniform(seeds[row : row + 1], counters[row])[0])


def test_uniform_looks_uniform():
    sample = uniform(torch.arange(16), torch.arange(4096)).double()
    assert sample.min() >= 0
    assert sample.max() < 1
    assert abs(sample.mean() - 0.5) < 0.005
    assert abs(sample.var() - 1 / 12) < 0.002


def test_seeds_differ_by_every_coordinate_and_by_no_other():
    keys = torch.tensor([11, -7, 2**40])
    base = derive_seeds(5, 9, keys, Site.GUMBEL)
    assert torch.equal(base, StepSeeds(5, 9, keys).at(Site.GUMBEL))
    assert torch.equal(base[1:2], derive_seeds(5, 9, keys[1:2], Site.GUMBEL))
    others = [
        derive_seeds(6, 9, keys, Site.GUMBEL),
        derive_seeds(5 + 2**32, 9, keys, Site.GUMBEL),
        derive_seeds(5, 10, keys, Site.GUMBEL),
        derive_seeds(5, 9, keys, Site.TOKEN_DROP),
        derive_seeds(5, 9, keys, Site.GUMBEL, layer=1),
        derive_seeds(5, 9, keys + 2**32, Site.GUMBEL),
    ]
    everything = torch.cat([base, *others])
    assert everything.unique().numel() == everything.numel()


@pytest.mark.parametrize(
    "step, site, layer", [(-1, 0, 0), (2**32, 0, 0), (0, 2**16, 0), (0, 0, -1)]
)
def test_out_of_range_place_is_refused(step, site, layer):
    with pytest.raises(ValueError, match="must be in"):
        derive_seeds(0, step, torch.tensor([1]), site, layer)
