"""Every attention backend that can run on this GPU against the reference, dense and padded."""

import pytest
import torch

from svilm_fast.models.attention import (
    AttentionRequest,
    KeyPadding,
    attend,
    availability,
    backend_names,
)

pytestmark = pytest.mark.gpu
NAMES = [name for name in backend_names() if name != "auto"]


@pytest.mark.parametrize("padded", [False, True], ids=["dense", "padded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_backend_equals_the_reference(name, dtype, padded):
    device = torch.device("cuda")
    usable, reason = availability(AttentionRequest(device, dtype, 64, padded))[name]
    if not usable:
        pytest.skip(f"{name}: {reason}")
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, 200, 4, 64)
    tensors = [
        torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_()
        for _ in range(3)
    ]
    lengths = torch.tensor([200, 57, 1], device=device)
    mask = torch.arange(200, device=device) < lengths[:, None]
    padding = KeyPadding(mask) if padded else None
    weight = mask[..., None, None].float() if padded else 1.0
    upstream = torch.randn(shape, generator=generator, device=device) * weight

    def run(backend, inputs):
        output = attend(*inputs, padding=padding, query_padding=padding, backend=backend)
        return output * weight, torch.autograd.grad((output * upstream).sum(), inputs)

    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected, expected_gradients = run("reference", exact)
    found, found_gradients = run(name, tensors)
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)
    for ours, oracle in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours.double(), oracle, rtol=3e-2, atol=3e-2)
