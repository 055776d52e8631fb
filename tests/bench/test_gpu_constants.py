"""The assumed constants of a GPU beside measured ones: arithmetic, file, text and kernels."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from svilm_fast.bench.gpu import constants, measure, probes
from svilm_fast.bench.gpu.constants import (
    CONSTANTS,
    NOT_MEASURED,
    MeasuredConstant,
    line_of,
    read_comparisons,
    summary,
    write_comparisons,
)
from svilm_fast.bench.static import machine
from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.device import A100, assume_traits
from svilm_fast.kernels.infonce.fused import layout

CPU = torch.device("cpu")
BY_NAME = {constant.name: constant for constant in CONSTANTS}


def test_every_assumption_that_a_kernel_alone_can_show_is_measured():
    brackets = {name for name, value in vars(machine).items() if isinstance(value, machine.Bracket)}
    assert brackets | {"TENSOR_EFFICIENCY", "PRODUCT_RATE"} == {*BY_NAME, *NOT_MEASURED}
    assert measure.MEASUREMENTS.keys() == BY_NAME.keys()
    assert BY_NAME["L2_RATE"].assumed == tuple(machine.L2_RATE)
    assert BY_NAME["PRODUCT_RATE"].assumed == (layout.PRODUCT_RATE,)


@pytest.mark.parametrize(
    ("name", "measured", "verdict"),
    [
        ("L2_RATE", 7.0e12, "inside"),
        ("L2_RATE", 6.9e12, "outside"),
        ("L2_RATE", 10.6e12, "outside"),
        # Few clocks are optimistic: the bracket descends.
        ("TMA_CLOCKS", 1200.0, "inside"),
        ("TMA_CLOCKS", 1201.0, "outside"),
        ("TMA_CLOCKS", 649.0, "outside"),
        ("TENSOR_EFFICIENCY", 0.96, "inside"),
        ("TENSOR_EFFICIENCY", 0.98, "outside"),
    ],
)
def test_the_verdict_is_that_of_the_bracket(name, measured, verdict):
    assert MeasuredConstant(BY_NAME[name], (measured,) * 3).verdict == verdict


def test_a_measured_number_can_be_taken_into_the_sources():
    samples = tuple(1e12 * value for value in (8.011, 8.111, 8.211, 8.311, 8.411, 8.511))
    found = MeasuredConstant(BY_NAME["L2_RATE"], samples)
    assert found.line_of_source == "L2_RATE = Bracket(8.11e+12, 8.26e+12, 8.41e+12)"
    clocks = MeasuredConstant(BY_NAME["TMA_CLOCKS"], (800.0, 820.0, 840.0, 860.0, 880.0, 900.0))
    assert clocks.line_of_source == "TMA_CLOCKS = Bracket(880, 850, 820)"
    single = MeasuredConstant(BY_NAME["TENSOR_EFFICIENCY"], (0.9512,) * 5)
    assert single.line_of_source == "TENSOR_EFFICIENCY = 0.951"
    taken = {"Bracket": machine.Bracket}
    for each in (found, clocks, single):
        exec(each.line_of_source, taken)
    for name in ("L2_RATE", "TMA_CLOCKS"):
        pessimistic, central, optimistic = taken[name]
        before = getattr(machine, name)
        # The bracket keeps its direction.
        assert (pessimistic < optimistic) == (before.pessimistic < before.optimistic)
        assert min(taken[name]) < central < max(taken[name])


def test_text_and_file_hold_both_numbers(tmp_path):
    rows = [
        MeasuredConstant(BY_NAME["L2_RATE"], (7e12, 7.5e12, 8e12)),
        measure.measured_constant(
            BY_NAME["PRODUCT_RATE"], {"dV": [6e14, 7e14, 8e14], "dT": [5e14]}
        ),
        MeasuredConstant(BY_NAME["TMA_CLOCKS"], reason="failed: RuntimeError: no room"),
    ]
    path = tmp_path / "gpu" / constants.FILE
    write_comparisons(path, rows, {"gpu": "Made-up GPU"})
    first, second, third = read_comparisons(path)
    assert first["assumed"] == [7e12, 8.8e12, 10.5e12]
    assert first["measured"]["median"] == 7.5e12
    assert (first["verdict"], third["verdict"]) == ("inside", "not measured")
    assert line_of(first) == ("L2_RATE: assumed 7/8.8/10.5 TB/s, measured 7.5 (7.2 to 7.8): inside")
    assert line_of(second).endswith("; dV 700, dT 500")
    assert line_of(third).endswith("clocks, not measured: failed: RuntimeError: no room")
    text = summary(rows, "Made-up GPU")
    assert text[0].startswith("constants of Made-up GPU;")
    assert sum("Bracket(" in line for line in text) == 1
    write_comparisons(path, rows[:1], {})
    assert len(read_comparisons(path)) == 1
    path.write_text(json.dumps({"schema": 1}))
    with pytest.raises(ValueError, match="is not a file of"):
        write_comparisons(path, rows, {})
    assert json.loads(path.read_text()) == {"schema": 1}


def marks(*lines):
    return torch.tensor(lines, dtype=torch.int64)


def test_marks_become_rates():
    # 1.8 clocks per nanosecond.
    lines = marks([0, 100, 18_100, 0, 5_000, 15_000, 0], [7, 50, 36_050, 0, 1, 20_001, 1])
    assert measure.clock_rates(lines) == pytest.approx([1.8e9, 1.8e9])
    steps = 10
    clocks = probes.FLOPS * steps / machine.TENSOR_FLOPS_PER_CLOCK
    assert clocks == steps * 8192
    perfect = marks([0, 0, int(clocks), 0, 0, 1, 0])
    assert measure.tensor_efficiency(perfect, steps) == [1.0]
    assert measure.clocks_per_step(lines, 9) == [2_000, 4_000]


def test_gaps_between_blocks_are_those_of_the_same_sm():
    lines = marks(
        [0, 10, 900, 1_000, 0, 0, 4],
        [50, 60, 1_000, 1_100, 0, 0, 9],
        [2_300, 2_310, 2_900, 3_000, 0, 0, 4],
        [1_250, 1_260, 1_900, 2_000, 0, 0, 4],
    )
    assert sorted(measure.start_gaps(lines)) == [250, 300]
    with pytest.raises(ValueError, match="two blocks ran"):
        measure.start_gaps(marks([0, 1, 90, 100, 0, 0, 0], [50, 51, 190, 200, 0, 0, 0]))


def test_a_failure_costs_only_its_own_constant(monkeypatch):
    def fails(_):
        raise RuntimeError("no room\nfor it")

    monkeypatch.setitem(measure.MEASUREMENTS, "L2_RATE", fails)
    monkeypatch.setitem(measure.MEASUREMENTS, "DRAM_RATE", lambda _: [4.3e12])
    wanted = [BY_NAME[name] for name in ("L2_RATE", "TMA_CLOCKS", "DRAM_RATE")]
    with assume_traits(A100):
        found, failed = measure.measure_all(CPU, wanted)
    assert failed
    assert [each.constant.name for each in found] == ["L2_RATE", "TMA_CLOCKS", "DRAM_RATE"]
    assert found[0].reason == "failed: RuntimeError: no room"
    assert found[1].reason == "the kernel is for compute capability (9, 0), not (8, 0)"
    assert found[2].samples == (4.3e12,)
    # What another GPU does not have is no failure.
    with assume_traits(A100):
        assert not measure.measure_all(CPU, wanted[1:])[1]


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure.main(["--out", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_chain_visits_every_line_once():
    lines = 64
    chain = probes.chain_of(lines, CPU)
    place, seen = 0, []
    for _ in range(lines):
        seen.append(place)
        place = int(chain[place])
    assert place == 0
    assert sorted(seen) == [probes.LINE_WORDS * line for line in range(lines)]


@pytest.mark.skipif(not interpreted(), reason="needs the interpreter")
def test_the_stream_reads_what_it_counts():
    tiles, programs, rounds = 5, 3, 7
    data = torch.ones(tiles * probes.STREAM_WORDS, dtype=torch.int32)
    sums = torch.empty(programs, dtype=torch.int32)
    probes.stream_kernel[(programs,)](data, sums, tiles, rounds, WORDS=probes.STREAM_WORDS)
    counted = probes.stream(data, programs, rounds)
    assert sums.tolist() == [rounds * probes.STREAM_WORDS] * programs
    assert counted == 4 * sum(sums.tolist())
    numbered = torch.arange(tiles, dtype=torch.int32).repeat_interleave(probes.STREAM_WORDS)
    probes.stream_kernel[(1,)](numbered, sums, tiles, tiles, WORDS=probes.STREAM_WORDS)
    assert int(sums[0]) == probes.STREAM_WORDS * sum(range(tiles))


DRIVER = """
import json, torch
from svilm_fast.bench.gpu import probes
from svilm_fast.kernels.aot import ARCHITECTURES, compile_launch
from svilm_fast.kernels.launch import record_launches
def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")
with record_launches() as launches:
    words = meta(1 << 22, dtype=torch.int32)
    probes.products(meta(128, 128), meta(256, 128), 132, 40)
    probes.stream(words, 528, 512)
    probes.chase(words, 132, 256)
    probes.barriers(meta(1), 132, 4096, 8)
    probes.tma_copies(meta(1 << 15, 64), 132, 256)
found = {}
for one in launches:
    compiled = compile_launch(one, ARCHITECTURES["sm_90"])
    found[compiled.kernel] = {
        "spills": compiled.spill_bytes + compiled.local_accesses,
        "blocks": compiled.blocks_per_sm,
        "code": [(i.opcode, i.operands, i.address, i.target) for i in compiled.instructions],
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def places(code, *starts):
    return [place for place, row in enumerate(code) if row[0].startswith(starts)]


def clocks(code):
    return [place for place, row in enumerate(code) if row[1].endswith("SR_CLOCKLO")]


def test_probes_compile_for_hopper_and_measure_what_they_say(compiled):
    assert all(found["spills"] == 0 for found in compiled.values())
    code = compiled["products_kernel"]["code"]
    products = places(code, "HGMMA")
    assert len(products) == probes.REPEATS * probes.TILE_K // 16
    begin, start, end, last = clocks(code)
    assert begin < min(places(code, "LDG")) < start < products[0]
    assert products[-1] < end < places(code, "STG")[0] < last
    # Operands stay in shared memory, and one block fills an SM.
    assert not [place for place in places(code, "LDG", "STS", "LDS") if start < place < end]
    assert compiled["products_kernel"]["blocks"] == 1
    loads = [row[0] for row in compiled["stream_kernel"]["code"] if row[0].startswith("LDG")]
    assert set(loads) == {"LDG.E.128.STRONG.GPU"}, "past L1, 16 bytes at once"
    assert compiled["stream_kernel"]["blocks"] >= probes.STREAM_BLOCKS_PER_SM


def test_latencies_are_between_two_clocks(compiled):
    code = compiled["chase_kernel"]["code"]
    _, start, end, _ = clocks(code)
    loads = places(code, "LDG")
    assert start < loads[0]
    # The first store holds the result of the last load; the clock is read after it.
    assert loads[-1] < places(code, "STG")[0] < end
    assert all(code[place][0] == "LDG.E.STRONG.GPU" for place in loads)
    code = compiled["barriers_kernel"]["code"]
    _, start, end, _ = clocks(code)
    assert all(start < place < end for place in places(code, "BAR"))
    code = compiled["tma_kernel"]["code"]
    [copy] = places(code, "UTMALDG")
    issued, arrived = clocks(code)
    assert issued < copy < places(code, "SYNCS.PHASECHK")[0] < arrived


@pytest.mark.gpu
def test_all_constants_are_measured_on_a_gpu():
    device = torch.device("cuda")
    found, failed = measure.measure_all(device, CONSTANTS)
    assert not failed, [each.reason for each in found]
    for each in found:
        assert all(math.isfinite(value) and value > 0 for value in each.samples), each.constant
