"""Kernel entries of a benchmark record on a GPU."""

import torch

from svilm_fast.bench.run.runner import run_one
from svilm_fast.bench.suites import ops


def test_a_record_lists_each_of_our_kernels_once():
    device = torch.device("cuda")
    one = next(b for b in ops.declared(device) if "/fused" in b.id and "/infonce/" in b.id)
    record = run_one(one, device, None, budget_s=0.01)
    assert record.status == "ok", record.status
    assert record.kernels
    assert all(kernel["registers"] > 0 for kernel in record.kernels)
    hashes = [kernel["hash"] for kernel in record.kernels]
    assert len(set(hashes)) == len(hashes)
