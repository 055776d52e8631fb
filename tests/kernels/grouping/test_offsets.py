"""Samples that lie beyond 2^31 elements are read and written where they are."""

import os
import subprocess
import sys

import pytest

# Three samples of 2^30 elements in virtual memory; every program looks at its first tile only.
PROGRAM = """
import dataclasses
import numpy as np
import torch
from svilm_fast.kernels.grouping.fused import backward, forward
from svilm_fast.kernels.grouping.fused.layout import plan
from svilm_fast.kernels.grouping.options import GroupingOptions
from svilm_fast.kernels.grouping.reference import GroupingOutput
from svilm_fast.kernels import grouping, traits

batch, length, width, groups, used = 3, 2**20, 1024, 2, 16
generator = torch.Generator().manual_seed(0)
tokens = torch.from_numpy(np.zeros((batch, length, width), dtype=np.float16))
tokens[:, :used] = torch.randn(batch, used, width, generator=generator)
queries = torch.randn(batch, groups, width, generator=generator).half() / 32
cut = dict(splits=1, chunk=16, block_tokens=16, prefetch=0)
plans = [
    dataclasses.replace(
        plan(batch, length, groups, width, torch.float16, traits("cpu"), way, way), **cut
    )
    for way in (False, True)
]
call = (queries, tokens, None, GroupingOptions(mode="hard"))
pooled, counts, index = forward.forward(plans[0], *call)
upstream = torch.randn(batch, groups, width, generator=generator).half()
d_queries, d_tokens, _ = backward.backward(
    plans[1], upstream, torch.ones_like(counts), *call,
    GroupingOutput(pooled, counts, index), True, True,
)
small = [t.double().requires_grad_() for t in (queries, tokens[:, :used])]
truth = grouping(*small, mode="hard", backend="reference")
gradients = torch.autograd.grad(
    (truth.pooled, truth.counts), small, (upstream.double(), torch.ones_like(truth.counts))
)
close = dict(rtol=2e-3, atol=2e-3)
assert torch.equal(index[:, :used], truth.index)
torch.testing.assert_close(pooled.double(), truth.pooled, **close)
torch.testing.assert_close(d_queries.double(), gradients[0], **close)
torch.testing.assert_close(d_tokens[:, :used].double(), gradients[1], **close)
print("far samples agree")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that exists when it is touched")
def test_far_samples_in_a_child_process():
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stdout.strip() == "far samples agree"
