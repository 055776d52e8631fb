"""Measures the constants of a GPU that the static model assumes; needs PyTorch and Triton only.

    python -m svilm_fast.bench.gpu.measure --out bench/results

writes `<gpu>/constants.json` with each measured number beside the assumed one, and prints both.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from svilm_fast.bench.environment import ROOT, environment, slug
from svilm_fast.bench.gpu import probes
from svilm_fast.bench.gpu.constants import (
    CONSTANTS,
    FILE,
    Constant,
    MeasuredConstant,
    summary,
    write_comparisons,
)
from svilm_fast.bench.static.machine import TENSOR_FLOPS_PER_CLOCK
from svilm_fast.core.terminal import print
from svilm_fast.kernels.device import traits
from svilm_fast.kernels.infonce.fused.backward import split_product
from svilm_fast.kernels.infonce.fused.layout import (
    backward_plan,
    default_workspace_bytes,
    padded_columns,
    tile_of,
)
from svilm_fast.kernels.primitives import accumulate_product

# Samples of a number in source units, or those of each of its parts.
Samples = Sequence[float] | Mapping[str, Sequence[float]]
RESULTS = ROOT / "bench" / "results"
# Fits L2 of an H200 (50 MiB in two halves) also if both halves hold a copy.
L2_BYTES = 16 * 2**20
# What a probe of latency reads, and what the other warps read meanwhile.
PROBE_BYTES, BUSY_BYTES = 4 * 2**20, 8 * 2**20
COPY_BYTES = 2**30
SQUARE = 8192
PAIRS, WIDTHS = 65536, (256, 512, 768)
# Long enough that the power limit lowers the clock.
LOAD_S = 1.0
PRODUCTS_BETWEEN = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all measured that this GPU can show, 1 a measurement failed, 2 no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: the constants can only be measured on a GPU", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    facts = environment(device)
    comparisons, failed = measure_all(device, CONSTANTS)
    path = options.out / slug(facts) / FILE
    write_comparisons(path, comparisons, facts)
    for line in summary(comparisons, str(facts["gpu"])):
        print(line)
    print(f"wrote {path}")
    return int(failed)


def measure_all(
    device: torch.device, constants: Sequence[Constant]
) -> tuple[list[MeasuredConstant], bool]:
    """Every constant in turn, and whether a measurement failed; a failure costs only its own."""
    found: dict[str, MeasuredConstant] = {}
    failed = False
    for constant in constants:
        try:
            found[constant.name] = measured_constant(constant, MEASUREMENTS[constant.name](device))
        except _NotHere as here:
            found[constant.name] = MeasuredConstant(constant, reason=str(here))
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            reason = f"failed: {type(error).__name__}: {first_line}"
            found[constant.name] = MeasuredConstant(constant, reason=reason)
            failed = True
    return [found[constant.name] for constant in constants], failed


def measured_constant(constant: Constant, measured: Samples) -> MeasuredConstant:
    """A constant beside its samples; those of several parts are judged together."""
    if not isinstance(measured, Mapping):
        return MeasuredConstant(constant, tuple(measured))
    together = tuple(value for samples in measured.values() for value in samples)
    parts = {name: float(np.median(samples)) for name, samples in measured.items()}
    return MeasuredConstant(constant, together, parts)


class _NotHere(Exception):
    """This GPU has no such property; the message says why."""


def clock_rates(marks: Tensor) -> list[float]:
    """Clocks per second of each program's loop."""
    clocks = (marks[:, probes.END] - marks[:, probes.START]).double()
    return (clocks / (marks[:, probes.END_NS] - marks[:, probes.START_NS]) * 1e9).tolist()


def tensor_efficiency(marks: Tensor, steps: int) -> list[float]:
    """FLOP per clock of each program's products, over that of the data sheet."""
    clocks = (marks[:, probes.END] - marks[:, probes.START]).double()
    return (probes.FLOPS * steps / clocks / TENSOR_FLOPS_PER_CLOCK).tolist()


def clocks_per_step(marks: Tensor, steps: int) -> list[float]:
    """Clocks of a step of each program's loop."""
    return ((marks[:, probes.END] - marks[:, probes.START]).double() / steps).tolist()


def start_gaps(marks: Tensor) -> list[float]:
    """Clocks from the last result of a block to the first instruction of the next on its SM.

    Raises ValueError if two blocks ran on an SM at once, where no gap is defined.
    """
    gaps: list[float] = []
    for sm in marks[:, probes.SM].unique():
        blocks = marks[marks[:, probes.SM] == sm]
        blocks = blocks[blocks[:, probes.BEGIN].argsort()]
        gaps += (blocks[1:, probes.BEGIN] - blocks[:-1, probes.LAST]).double().tolist()
    if gaps and min(gaps) < 0:
        raise ValueError("two blocks ran on an SM at the same time")
    return gaps


def _operands(device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shapes = (probes.TILE_M, probes.TILE_K), (probes.TILE_N, probes.TILE_K)
    left, right = (
        torch.randn(shape, generator=generator, device=device).bfloat16() for shape in shapes
    )
    return left, right


def _matrices(device: torch.device, dtype: torch.dtype, *shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)
        for shape in shapes
    ]


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, `repeats` of which run without a pause."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / repeats


def _sampled(call: Callable[[], object], work: float, samples: int = 9) -> list[float]:
    """Work per second of a call; a sample is at least some milliseconds of calls."""
    call()
    repeats = max(1, round(5e-3 / seconds_of(call, 2)))
    return [work / seconds_of(call, repeats) for _ in range(samples)]


def under_load(
    device: torch.device, probe: Callable[[], Tensor]
) -> tuple[list[float], list[Tensor]]:
    """FLOP/s of cuBLAS products, and the probe's marks between them, once the load has settled.

    Products of 8192 cubed run without a pause for LOAD_S; the second half of it counts.
    """
    a, b = _matrices(device, torch.bfloat16, (SQUARE, SQUARE), (SQUARE, SQUARE))
    out = torch.empty_like(a)
    probe()
    rates, marks = [], []
    begin = time.monotonic()
    while (elapsed := time.monotonic() - begin) < LOAD_S:
        seconds = seconds_of(lambda: torch.mm(a, b, out=out), PRODUCTS_BETWEEN)
        mark = probe()
        if elapsed > LOAD_S / 2:
            rates.append(2.0 * SQUARE**3 / seconds)
            marks.append(mark)
    return rates, [mark.cpu() for mark in marks]


def _probe(device: torch.device, steps: int) -> Callable[[], Tensor]:
    left, right = _operands(device)
    programs = traits(device).sm_count
    return lambda: probes.products(left, right, programs, steps)


_PROBE_STEPS = 40


def measure_clock(device: torch.device) -> list[float]:
    """Clock rate of every SM between cuBLAS products."""
    _, marks = under_load(device, _probe(device, _PROBE_STEPS))
    return [rate for mark in marks for rate in clock_rates(mark)]


def measure_products(device: torch.device) -> list[float]:
    """FLOP/s of cuBLAS under its own load."""
    return under_load(device, _probe(device, 1))[0]


def measure_tensor_cores(device: torch.device) -> list[float]:
    """Share of the data sheet's FLOP per clock."""
    if (found := traits(device).capability) != (9, 0):
        raise _NotHere(f"the data sheet's figure is for compute capability (9, 0), not {found}")
    probe = _probe(device, _PROBE_STEPS)
    probe()
    return tensor_efficiency(probe().cpu(), _PROBE_STEPS)


def measure_starts(device: torch.device) -> list[float]:
    """Clocks between blocks, eight of which follow one another on each SM."""
    left, right = _operands(device)
    programs = 8 * traits(device).sm_count
    probes.products(left, right, programs, 1)
    return start_gaps(probes.products(left, right, programs, 1).cpu())


def _words(device: torch.device, size: int) -> Tensor:
    return torch.arange(size // 4, dtype=torch.int32, device=device)


def measure_l2(device: torch.device) -> list[float]:
    """Bytes per second from L2 to all SMs."""
    data, rounds = _words(device, L2_BYTES), 512
    programs = probes.STREAM_BLOCKS_PER_SM * traits(device).sm_count
    read = partial(probes.stream, data, programs, rounds)
    return _sampled(read, read())


def measure_dram(device: torch.device) -> list[float]:
    """Bytes per second of a large copy."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _sampled(lambda: target.copy_(source), 2.0 * COPY_BYTES)


def measure_our_products(device: torch.device) -> dict[str, list[float]]:
    """FLOP/s of dV = dS T and dT = dS^T V for a chunk of the backward plan, by width."""
    rates: dict[str, list[float]] = {}
    for width in WIDTHS:
        videos, texts = _matrices(device, torch.bfloat16, (PAIRS, width), (PAIRS, width))
        workspace = default_workspace_bytes(videos, texts)
        rows, splits = backward_plan(videos, texts, tile_of(videos), (True, True), workspace)
        (buffer,) = _matrices(device, torch.float16, (rows, padded_columns(PAIRS)))
        gradient, factors = buffer[:, :PAIRS], texts.half()
        part = videos[:rows].half()
        sums = torch.empty((splits, rows, width), device=device)
        total = torch.zeros((PAIRS, width), device=device)
        flops = 2.0 * rows * PAIRS * width

        calls = {
            "dV": partial(split_product, sums, gradient, factors),
            "dT": partial(accumulate_product, total, gradient.T, part, first=False),
        }
        for product, call in calls.items():
            rates[f"{product} D={width}"] = _sampled(call, flops, 5)
    return rates


@contextmanager
def _reading(device: torch.device) -> Iterator[None]:
    """All SMs read L2 on another stream for some milliseconds, beside the work of the block."""
    data, programs = _words(device, BUSY_BYTES), 2 * traits(device).sm_count
    # Compiles the kernel, so that its start takes microseconds.
    probes.stream(data, programs, 1)
    torch.cuda.synchronize(device)
    other = torch.cuda.Stream(device)
    other.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(other):
        probes.stream(data, programs, 1 << 14)
        still = torch.cuda.Event()
        still.record()
    yield
    torch.cuda.current_stream(device).synchronize()
    beside = not still.query()
    torch.cuda.synchronize(device)
    if not beside:
        raise RuntimeError("the reading of L2 ended before the measurement did")


def measure_loads(device: torch.device) -> list[float]:
    """Clocks of a load from L2 in a busy GPU."""
    chain = probes.chain_of(PROBE_BYTES // 4 // probes.LINE_WORDS, device)
    programs, steps = traits(device).sm_count, 256
    probes.chase(chain, programs, steps)
    with _reading(device):
        marks = probes.chase(chain, programs, steps)
    return clocks_per_step(marks.cpu(), steps)


def measure_tma(device: torch.device) -> list[float]:
    """Clocks of a TMA copy from L2 in a busy GPU."""
    if (found := traits(device).capability) != (9, 0):
        raise _NotHere(f"the kernel is for compute capability (9, 0), not {found}")
    source = _words(device, PROBE_BYTES).view(torch.bfloat16).view(-1, probes.COPY_COLUMNS)
    programs, steps = traits(device).sm_count, 256
    probes.tma_copies(source, programs, steps)
    with _reading(device):
        waits = probes.tma_copies(source, programs, steps)
    return (waits.cpu().double() / steps).tolist()


def measure_barriers(device: torch.device) -> list[float]:
    """Clocks of a barrier of eight warps."""
    like, steps = torch.empty(1, device=device), 4096
    programs = traits(device).sm_count
    probes.barriers(like, programs, steps, 8)
    return clocks_per_step(probes.barriers(like, programs, steps, 8).cpu(), steps)


MEASUREMENTS: dict[str, Callable[[torch.device], Samples]] = {
    "CLOCK_HZ": measure_clock,
    "L2_RATE": measure_l2,
    "DRAM_RATE": measure_dram,
    "SUSTAINED_FLOPS": measure_products,
    "PRODUCT_RATE": measure_our_products,
    "TENSOR_EFFICIENCY": measure_tensor_cores,
    "TMA_CLOCKS": measure_tma,
    "COPY_CLOCKS": measure_loads,
    "BLOCK_START_CLOCKS": measure_starts,
    "BARRIER_CLOCKS": measure_barriers,
}


if __name__ == "__main__":
    sys.exit(main())
