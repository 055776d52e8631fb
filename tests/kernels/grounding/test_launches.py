"""What the profiler counts on a GPU."""

import pytest
import torch

from svilm_fast.kernels.registry import ops


@pytest.mark.gpu
def test_the_loss_takes_at_most_ten_launches():
    op = ops()["grounding"]
    inputs = op.make_inputs(op.cases["paper"], torch.bfloat16, "cuda", 0)

    def step():
        for tensor in inputs.values():
            tensor.grad = None
        op.api(**inputs, backend="fused").backward()

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        torch.cuda.synchronize()
    device = torch.autograd.DeviceType.CUDA
    launches = [event.name for event in profiler.events() if event.device_type == device]
    assert 0 < len(launches) <= 10, launches
