"""The sanitizer names each kind of fault in a kernel that has it and passes right kernels."""

import importlib

import pytest
import torch
import triton
import triton.language as tl

from svilm_fast.kernels import grouping, temporal_bce
from svilm_fast.kernels.backend import interpreted
from tests.kernels.sanitizer import KernelFault, Sanitizer

pytestmark = pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")


@triton.jit
def scale_kernel(source, target, count, BLOCK: tl.constexpr, MASK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASK:
        value = tl.load(source + index, mask=index < count, other=0.0)
    else:
        value = tl.load(source + index)
    tl.store(target + index, 2 * value, mask=index < count)


@triton.jit
def overlap_kernel(target, BLOCK: tl.constexpr, STEP: tl.constexpr):
    index = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    tl.store(target + index, tl.full((BLOCK,), 1.0, tl.float32))


@triton.jit
def read_neighbour_kernel(source, target, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    tl.store(target + program * BLOCK + index, tl.load(source + index))
    other = (program + 1) % tl.num_programs(0)
    tl.store(source + program, tl.load(target + other * BLOCK))


@triton.jit
def add_kernel(target, BLOCK: tl.constexpr):
    tl.atomic_add(target + tl.arange(0, BLOCK), 1.0)


@triton.jit
def lanes_kernel(target, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(target + index // 2, index.to(tl.float32))


@triton.jit
def block_kernel(source, target, rows, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    # Deprecated, but the interpreter still has this way to memory.
    block = tl.make_block_ptr(source, (rows, WIDTH), (WIDTH, 1), (0, 0), (ROWS, WIDTH), (1, 0))
    value = tl.load(block)
    index = tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(target + index, value, mask=index < rows * WIDTH)


def fault(run) -> KernelFault:
    with Sanitizer(), pytest.raises(KernelFault) as caught:
        run()
    return caught.value


def test_a_right_kernel_passes_and_computes_the_same():
    source = torch.arange(10.0)
    with Sanitizer() as sanitizer:
        target = torch.empty(10)
        scale_kernel[(3,)](source, target, 10, BLOCK=4, MASK=True)
        assert sanitizer.unwritten(target) == 0
    assert torch.equal(target, 2 * source)
    assert sanitizer.launches == 1


def test_a_value_that_looks_like_fresh_memory_was_written():
    with Sanitizer() as sanitizer:
        target = torch.empty(4, dtype=torch.float16)
        (value,) = set(target.tolist())
        source = torch.full((2,), value / 2, dtype=torch.float16)
        scale_kernel[(1,)](source, target, 2, BLOCK=4, MASK=True)
        assert sanitizer.unwritten(target) == 2


def test_a_load_outside_its_tensor():
    # The next tensor lies right behind: the memory is mapped, and the access still wrong.
    both = torch.arange(20.0)
    found = fault(lambda: scale_kernel[(3,)](both[:10], torch.empty(10), 10, BLOCK=4, MASK=False))
    assert found.kind == "bounds"
    for part in ("scale_kernel", "program (2, 0, 0)", "'source' (float32 [10])", "offset 10 "):
        assert part in str(found)


def test_a_store_outside_its_tensor_does_not_happen():
    memory = torch.zeros(20)
    found = fault(lambda: scale_kernel[(3,)](torch.ones(12), memory[:10], 12, BLOCK=4, MASK=True))
    assert found.kind == "bounds"
    assert "store" in str(found)
    assert "'target'" in str(found)
    assert not memory[10:].any()


def test_an_access_in_the_gaps_of_a_strided_tensor():
    wide = torch.zeros(4, 8)
    found = fault(lambda: scale_kernel[(2,)](wide[:, :4], torch.empty(16), 16, BLOCK=8, MASK=True))
    assert found.kind == "bounds"
    assert "offset 4 " in str(found)


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr")
def test_a_block_pointer_without_a_boundary_check():
    source = torch.zeros(5, 4)
    found = fault(lambda: block_kernel[(1,)](source, torch.empty(5, 4), 5, ROWS=8, WIDTH=4))
    assert found.kind == "bounds"
    assert "offset 20 " in str(found)


def test_two_programs_write_the_same_bytes():
    found = fault(lambda: overlap_kernel[(3,)](torch.empty(10), BLOCK=4, STEP=3))
    assert found.kind == "race"
    for part in ("overlap_kernel", "'target'", "wrote it in the same launch"):
        assert part in str(found)


def test_a_program_reads_what_another_writes_in_any_order():
    for seed in range(4):
        with Sanitizer(seed), pytest.raises(KernelFault) as caught:
            read_neighbour_kernel[(4,)](torch.zeros(4), torch.zeros(16), BLOCK=4)
        assert caught.value.kind == "race"


def test_atomic_additions_of_several_programs_are_no_race():
    target = torch.zeros(4)
    with Sanitizer():
        add_kernel[(5,)](target, BLOCK=4)
    assert target.tolist() == [5.0] * 4


def test_lanes_of_one_store_that_disagree():
    found = fault(lambda: lanes_kernel[(1,)](torch.empty(4), BLOCK=8))
    assert found.kind == "race"
    assert "two lanes" in str(found)


@pytest.mark.parametrize("maker", [torch, torch.zeros(1)], ids=["empty", "new_empty"])
def test_a_read_of_what_nobody_wrote(maker):
    def run():
        workspace = maker.empty(8) if maker is torch else maker.new_empty(8)
        scale_kernel[(1,)](torch.ones(4), workspace, 4, BLOCK=4, MASK=True)
        scale_kernel[(2,)](workspace, torch.empty(8), 8, BLOCK=4, MASK=True)

    found = fault(run)
    assert found.kind == "uninitialised"
    for part in ("scale_kernel", "program (1, 0, 0)", "'source'", "offset 4 "):
        assert part in str(found)


def test_what_pytorch_wrote_is_initialised():
    with Sanitizer() as sanitizer:
        workspace = torch.empty(8)
        assert sanitizer.unwritten(workspace) == 8
        workspace.fill_(3.0)
        scale_kernel[(2,)](workspace, torch.empty(8), 8, BLOCK=4, MASK=True)


def test_the_order_of_the_programs_follows_from_the_seed():
    orders = []
    for seed in (1, 1, 2):
        places = []
        with Sanitizer(seed) as sanitizer:
            scale_kernel[(16,)](torch.ones(64), torch.empty(64), 64, BLOCK=4, MASK=True)
            places = sanitizer._order.tolist()
        orders.append(places)
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(16))


PLANTED = {
    "the logits are not kept for backward": (
        "temporal.fused.forward",
        "tl.store(logits + sample * segments + place, logit, mask=place < segments)",
        "pass",
        "uninitialised",
    ),
    "logits past the last segment": (
        "temporal.fused.forward",
        "tl.store(logits + sample * segments + place, logit, mask=place < segments)",
        "tl.store(logits + sample * segments + place, logit)",
        "race or bounds",
    ),
    "half a block past the width": (
        "grouping.fused.backward",
        "if WIDTH % BLOCK_C != 0:",
        "if False:",
        "race",
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_of_the_ops_are_named(mutate, name):
    module, old, new, kind = PLANTED[name]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).requires_grad_()

    def run():
        if module.startswith("temporal"):
            paste = torch.arange(21).view(3, 7) % 2 == 0
            temporal_bce(random(3, 7, 24), paste, backend="fused").backward()
        else:
            out = grouping(random(2, 6, 96), random(2, 40, 96), mode="hard", backend="fused")
            (out.pooled.sum() + out.counts.sum()).backward()

    with Sanitizer():
        run()
    mutate(importlib.import_module(f"svilm_fast.kernels.{module}"), {old: new})
    assert fault(run).kind in kind
