"""How a call is cut into programs: every token once, within the limits of the GPU."""

import itertools

import pytest
import torch

from svilm_fast.kernels.device import A100, B200, H200
from svilm_fast.kernels.grouping.fused.layout import plan


@pytest.mark.parametrize("traits", [A100, H200, B200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_plans_cover_the_work_and_fit(traits, dtype):
    sizes = itertools.product(
        (1, 7, 256), (0, 1, 100, 3136), (1, 32, 64), (16, 80, 384, 768, 1024), (True, False)
    )
    for batch, length, groups, width, backward in sizes:
        p = plan(batch, length, groups, width, dtype, traits, backward)
        assert p.own_blocks * p.slabs == p.num_blocks
        assert p.num_blocks * p.block_width >= width
        assert p.block_groups >= groups
        assert p.splits * p.chunk >= length
        assert p.chunk % p.block_tokens == 0
        assert 0 <= p.prefetch <= p.own_blocks
        buffers = p.own_blocks if p.stages == 1 else 2 * p.own_blocks - p.prefetch
        query_rows = p.block_groups if p.resident else 0
        held = p.block_tokens * buffers + query_rows * p.own_blocks
        if not backward:
            assert held * p.block_width * dtype.itemsize < traits.shared_memory_bytes


def test_target_keeps_the_whole_width_in_one_program():
    p = plan(256, 3136, 32, 768, torch.bfloat16, H200, False)
    assert (p.slabs, p.splits, p.stages, p.resident, p.branches) == (1, 1, 2, True, True)


def test_few_clips_are_split_over_the_multiprocessors():
    p = plan(8, 3136, 32, 768, torch.bfloat16, H200, False)
    assert 64 <= 8 * p.splits <= 2 * H200.sm_count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_streaming_plans_cover_the_work(dtype):
    sizes = itertools.product((1, 7, 256), (0, 1, 100, 3136), (1, 17, 32), (16, 80, 384, 768))
    for batch, length, groups, width in sizes:
        p = plan(batch, length, groups, width, dtype, H200, True, True)
        assert p.stream
        assert (p.slabs, p.own_blocks) == (1, p.num_blocks)
        assert p.num_blocks * p.block_width >= width
        assert groups <= p.block_groups <= 32
        assert p.splits * p.chunk >= length
        assert p.chunk % p.block_tokens == 0


@pytest.mark.parametrize(
    "traits, groups, width, dtype, backward",
    [
        (A100, 32, 768, torch.bfloat16, True),
        (B200, 32, 768, torch.bfloat16, True),
        (H200, 33, 768, torch.bfloat16, True),
        (H200, 32, 1024, torch.bfloat16, True),
        (H200, 32, 768, torch.float32, True),
        (H200, 32, 768, torch.bfloat16, False),
    ],
)
def test_no_stream_where_it_does_not_fit(traits, groups, width, dtype, backward):
    assert not plan(256, 3136, groups, width, dtype, traits, backward, True).stream
