"""The interpreter of Gluon passes a right kernel and names each kind of fault in a wrong one."""

from functools import partial

import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from svilm_fast.kernels.launch import Launch
from tests.bars import SEED_OFFSET
from tests.kernels.gluon_bugs import HIDDEN, WRONG, comparing, require_caught
from tests.kernels.gluon_interpreter import interpret
from tests.kernels.gluon_machine import GluonFault


@gluon.jit
def copy_rows(source, buffer, filled, BLOCKS: gl.constexpr, BUG: gl.constexpr):
    if BUG == "more copies than expected":
        tma.async_copy_global_to_shared(source, [0, 0], filled.index(2), buffer.index(3))
    for block in gl.static_range(BLOCKS):
        mbarrier.expect(filled.index(block), source.block_type.nbytes)
        tma.async_copy_global_to_shared(
            source, [16 * block, 0], filled.index(block), buffer.index(block)
        )
    if BUG == "no such buffer":
        buffer.index(4)


@gluon.jit
def multiply_rows(buffer, plain, filled, target, BLOCKS: gl.constexpr, BUG: gl.constexpr):
    dots = gl.zeros([16, 16], gl.float32, layout=None)
    for block in gl.static_range(BLOCKS):
        mbarrier.wait(filled.index(block), 0)
        rows = buffer.index(block)
        dots = warpgroup_mma(rows, rows.permute((1, 0)), dots, is_async=True)
    if BUG == "no wait for the product":
        dots = gl.zeros([16, 16], gl.float32, layout=None)
    elif BUG == "result before the wait":
        dots = dots + 1.0
    else:
        dots = warpgroup_mma_wait(0, deps=(dots,))
    plain.store(dots)
    total = gl.sum(plain.load(None), 1)
    row = gl.arange(0, 16, layout=None)
    gl.store(target + row, total, mask=row < 16)
    if BUG == "stored twice":
        gl.store(target + row, total, mask=row == 3)
    if BUG == "out of bounds":
        gl.store(target + row, total, mask=row == row)
        gl.store(target + 16 + row, total, mask=row < 1)


@gluon.jit
def products_kernel(source, target, BLOCKS: gl.constexpr, BUG: gl.constexpr):
    buffer = gl.allocate_shared_memory(source.dtype, [4, 16, 32], source.layout)
    plain = gl.allocate_shared_memory(
        gl.float32, [16, 16], gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    )
    filled = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    for block in gl.static_range(BLOCKS):
        if BUG != "no initialisation":
            mbarrier.init(filled.index(block), count=1)
    if BUG == "initialised twice":
        mbarrier.init(filled.index(0), count=1)
    gl.warp_specialize(
        [
            (multiply_rows, (buffer, plain, filled, target, BLOCKS, BUG)),
            (copy_rows, (source, buffer, filled, BLOCKS, BUG)),
        ],
        [1],
        [24],
    )


def run(bug, seed):
    source = torch.randn(40, 32, generator=torch.Generator().manual_seed(0)).half()
    layout = gl.NVMMASharedLayout.get_default_for([16, 32], gl.float16)
    target = torch.full((16,), torch.nan)
    descriptor = TensorDescriptor.from_tensor(source, [16, 32], layout)
    meta = {"BLOCKS": 3, "BUG": bug, "num_warps": 4}
    interpret(Launch(products_kernel, (1,), (descriptor, target), meta), seed + SEED_OFFSET)
    # The descriptor fills rows past the end with zeros.
    rows = torch.cat((source.double(), torch.zeros(8, 32))).view(3, 16, 32)
    expected = (rows @ rows.transpose(1, 2)).sum((0, 2))
    torch.testing.assert_close(target.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_right_kernel_passes_every_schedule():
    for seed in range(20):
        run("", seed)


@pytest.mark.parametrize(
    ("bug", "faults"),
    [
        ("more copies than expected", "missing wait or barrier or pending"),
        ("no such buffer", "memory"),
        ("no wait for the product", "pending"),
        ("result before the wait", "pending"),
        ("stored twice", "memory"),
        ("out of bounds", "memory"),
        ("no initialisation", "barrier or deadlock"),
        ("initialised twice", "barrier"),
    ],
)
def test_a_fault_is_named(bug, faults):
    require_caught(partial(run, bug), faults, seeds=5)


def test_equal_seeds_give_equal_faults():
    texts = []
    for _ in range(2):
        with pytest.raises(GluonFault) as caught:
            run("more copies than expected", 3)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


@gluon.jit
def double_rows(source, target, buffer, passed, BLOCKS: gl.constexpr, BUG: gl.constexpr):
    for block in gl.static_range(BLOCKS):
        if BUG != "no wait before reuse":
            tma.store_wait(1 if BUG == "wait for all but one" else 0)
        row = 16 * block + gl.arange(0, 16, layout=None)
        if BUG == "fence first":
            fence_async_shared()
        buffer.store(
            2.0 * gl.reshape(gl.load(source + row), [16, 1])
            + gl.zeros([16, 8], gl.float32, layout=None)
        )
        if BUG not in ("no fence", "fence first"):
            fence_async_shared()
        at = 16 if BUG == "stored twice" else 16 * block
        tma.async_copy_shared_to_global(target, [at - 8, 0], buffer)
    if BUG != "ends early":
        tma.store_wait(0)
    mbarrier.arrive(passed, count=1)


@gluon.jit
def store_again(target, buffer, passed, BUG: gl.constexpr):
    if BUG != "no wait for the other":
        mbarrier.wait(passed, 0)
    tma.async_copy_shared_to_global(target, [40, 0], buffer)
    tma.store_wait(0)


@gluon.jit
def stores_kernel(source, target, BLOCKS: gl.constexpr, BUG: gl.constexpr):
    buffer = gl.allocate_shared_memory(target.dtype, [16, 8], target.layout)
    passed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(passed, count=1)
    gl.warp_specialize(
        [
            (double_rows, (source, target, buffer, passed, BLOCKS, BUG)),
            (store_again, (target, buffer, passed, BUG)),
        ],
        [4],
        [24],
    )


def store(bug, seed):
    source, target = torch.arange(48.0), torch.full((48, 8), torch.nan).half()
    layout = gl.NVMMASharedLayout.get_default_for([16, 8], gl.float16)
    descriptor = TensorDescriptor.from_tensor(target, [16, 8], layout)
    meta = {"BLOCKS": 3, "BUG": bug, "num_warps": 4}
    interpret(Launch(stores_kernel, (1,), (source, descriptor), meta), seed + SEED_OFFSET)
    # Rows start 8 above the matrix, and the last block is stored again below itself: both clipped.
    expected = torch.cat((2 * source[8:], 2 * source[32:40]))
    assert torch.equal(target, expected[:, None].expand(48, 8).half())


def test_stores_are_clipped_and_pass_every_schedule():
    for seed in range(20):
        store("", seed)


@pytest.mark.parametrize(
    ("bug", "faults"),
    [
        ("no fence", "missing fence"),
        ("fence first", "missing fence"),
        ("no wait before reuse", "overwritten buffer"),
        ("wait for all but one", "overwritten buffer"),
        ("no wait for the other", "missing wait or overwritten buffer"),
        ("ends early", "pending"),
        ("stored twice", "memory"),
    ],
)
def test_a_fault_of_a_store_is_named(bug, faults):
    require_caught(partial(store, bug), faults, seeds=5)


@gluon.jit
def sum_rows(buffer, filled, read, target, BLOCKS: gl.constexpr, BUG: gl.constexpr):
    for block in gl.static_range(BLOCKS):
        mbarrier.wait(filled, block & 1)
        if BUG == "fence before the load":
            fence_async_shared()
        total = gl.sum(buffer.load(None), 1)
        gl.store(target + 16 * block + gl.arange(0, 16, layout=None), total)
        if BUG == "":
            fence_async_shared()
        mbarrier.arrive(read, count=1)


@gluon.jit
def refill(source, buffer, filled, read, BLOCKS: gl.constexpr, BUG: gl.constexpr):
    for block in gl.static_range(BLOCKS):
        mbarrier.wait(read, (block & 1) ^ 1)
        if BUG == "fence where the copy starts":
            fence_async_shared()
        mbarrier.expect(filled, source.block_type.nbytes)
        tma.async_copy_global_to_shared(source, [16 * block, 0], filled, buffer)


@gluon.jit
def reading_kernel(source, target, BLOCKS: gl.constexpr, BUG: gl.constexpr):
    buffer = gl.allocate_shared_memory(source.dtype, [16, 32], source.layout)
    filled = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    read = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(filled, count=1)
    mbarrier.init(read, count=1)
    gl.warp_specialize(
        [
            (sum_rows, (buffer, filled, read, target, BLOCKS, BUG)),
            (refill, (source, buffer, filled, read, BLOCKS, BUG)),
        ],
        [1],
        [24],
    )


def read(bug, seed):
    source = torch.randn(48, 32, generator=torch.Generator().manual_seed(0)).half()
    layout = gl.NVMMASharedLayout.get_default_for([16, 32], gl.float16)
    target = torch.full((48,), torch.nan)
    descriptor = TensorDescriptor.from_tensor(source, [16, 32], layout)
    meta = {"BLOCKS": 3, "BUG": bug, "num_warps": 4}
    interpret(Launch(reading_kernel, (1,), (descriptor, target), meta), seed + SEED_OFFSET)
    torch.testing.assert_close(target, source.float().sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", ["", "fence where the copy starts"])
def test_a_buffer_that_is_read_and_filled_again_passes_every_schedule(place):
    for seed in range(20):
        read(place, seed)


@pytest.mark.parametrize("bug", ["no fence", "fence before the load"])
def test_a_copy_over_what_was_read_needs_a_fence(bug):
    require_caught(partial(read, bug), "missing fence", seeds=5)


def test_bugs_that_are_not_caught_fail():
    def wrong(seed):
        with comparing():
            assert seed > 9, "the oracle's"

    require_caught(wrong, WRONG, seeds=3)
    require_caught(lambda seed: wrong(seed + 8), f"{WRONG} or {HIDDEN}", seeds=4)
    with pytest.raises(AssertionError, match=r"'wrong result'.*, expected deadlock"):
        require_caught(wrong, "deadlock")
    with pytest.raises(AssertionError, match=r"'no fault'.*, expected deadlock"):
        require_caught(lambda seed: None, "deadlock")
    with pytest.raises(AssertionError, match="no fault in 2 schedules, expected deadlock or no"):
        require_caught(lambda seed: None, f"deadlock or {HIDDEN}", seeds=2)
    with pytest.raises(AssertionError, match="unknown outcome in 'race'"):
        require_caught(wrong, "race")


def test_an_assertion_of_the_test_itself_is_no_outcome():
    def broken(seed):
        assert seed > 0, "inputs"

    with pytest.raises(AssertionError, match="inputs"):
        require_caught(broken, WRONG)
