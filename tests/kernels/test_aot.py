"""Ahead-of-time compilation reads from machine code what a profiler would complain about."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from svilm_fast.kernels.aot import ARCHITECTURES, compile_launch
from svilm_fast.kernels.launch import Launch

KERNELS = """
import triton
import triton.language as tl

@triton.jit
def product(x, y, out, sums, rows, columns, depth, BM: tl.constexpr, BN: tl.constexpr,
            BK: tl.constexpr, STORE: tl.constexpr, PRECISION: tl.constexpr):
    offset_m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    total = tl.zeros((BM,), tl.float32)
    for start in range(0, columns, BN):
        offset_n = start + tl.arange(0, BN)
        tile = tl.zeros((BM, BN), tl.float32)
        for k in range(0, depth, BK):
            offset_k = k + tl.arange(0, BK)
            a = tl.load(x + offset_m[:, None] * depth + offset_k[None, :])
            b = tl.load(y + offset_n[:, None] * depth + offset_k[None, :])
            tile = tl.dot(a, tl.trans(b), tile, input_precision=PRECISION)
        total += tl.sum(tile, 1)
        if STORE:
            tl.store(out + offset_m[:, None] * columns + offset_n[None, :], tile)
    tl.store(sums + offset_m, total)
"""
DRIVER = """
import dataclasses, json, sys, torch
sys.path.insert(0, sys.argv[1])
import planted_kernels as planted
from svilm_fast.kernels.aot import ARCHITECTURES, compile_launch
from svilm_fast.kernels.launch import launch, record_launches
case = json.loads(sys.argv[2])
dtype = getattr(torch, case.pop("dtype", "bfloat16"))
depth, target = case.pop("depth", 512), case.pop("target", "sm_90")
meta = dict(BM=128, BN=128, BK=64, STORE=False, PRECISION="ieee", num_warps=8, num_stages=3) | case
x = torch.empty(4096, depth, device="meta", dtype=dtype)
sums = torch.empty(4096, device="meta")
with record_launches() as launches:
    launch(planted.product, (32,), x, x, sums, sums, 4096, 4096, depth, **meta)
print(json.dumps(dataclasses.asdict(compile_launch(launches[0], ARCHITECTURES[target]))))
"""


def compiled(folder, **case):
    (folder / "planted_kernels.py").write_text(KERNELS)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder), json.dumps(case)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_healthy_kernel_uses_wgmma_and_wide_loads(tmp_path):
    row = compiled(tmp_path)
    assert row["tensor_instructions"].keys() == {"HGMMA"}
    assert row["spill_bytes"] == row["local_accesses"] == row["loop_stores"] == 0
    assert row["fp64_instructions"] == row["atomics"] == 0
    assert row["wide_loads"] == row["loads"] > 0
    assert row["half_precision_dot"]
    assert row["blocks_per_sm"] >= 1


@pytest.mark.slow
def test_a_spill_is_seen(tmp_path):
    row = compiled(tmp_path, BM=256, BN=256, num_warps=4)
    assert row["spill_bytes"] > 0
    assert row["local_accesses"] > 0


@pytest.mark.slow
def test_lost_alignment_is_seen(tmp_path):
    row = compiled(tmp_path, depth=511)
    assert row["wide_loads"] == 0 < row["loads"]


@pytest.mark.slow
def test_a_store_of_the_whole_matrix_is_seen(tmp_path):
    assert compiled(tmp_path, STORE=True)["loop_stores"] > 0


@pytest.mark.slow
def test_too_much_shared_memory_is_seen(tmp_path):
    row = compiled(tmp_path, BM=256, BN=256, BK=128, num_stages=4)
    assert row["shared_bytes"] > row["shared_limit"]
    assert row["blocks_per_sm"] == 0


@pytest.mark.slow
def test_targets_have_their_own_tensor_instructions(tmp_path):
    assert "HMMA" in compiled(tmp_path, target="sm_80")["tensor_instructions"]
    assert "UTCHMMA" in compiled(tmp_path, target="sm_100")["tensor_instructions"]


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "blocks"),
    [
        (122, 98304, 8, 2),
        (146, 98304, 8, 1),
        (171, 147456, 8, 1),
        (32, 0, 4, 16),
        (98, 240000, 8, 0),
    ],
)
def test_resident_blocks_on_sm_90(registers, shared, warps, blocks):
    assert ARCHITECTURES["sm_90"].resident_blocks(registers, shared, warps) == blocks


def test_the_interpreter_is_refused():
    class Interpreted:
        """An interpreted kernel has no `warmup`."""

    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_launch(Launch(Interpreted(), (1,), (), {}), ARCHITECTURES["sm_90"])
