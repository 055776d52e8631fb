"""Offsets beyond 2^31 elements, on memory that is reserved but never touched."""

import os
import subprocess
import sys
import textwrap

import pytest

from svilm_fast.kernels.backend import interpreted

pytestmark = pytest.mark.skipif(not interpreted(), reason="runs kernels through the interpreter")

# A wrong offset reads or writes outside its mapping, so each case gets a process of its own.
COMMON = """
    import numpy as np
    import torch
    from torch.nn.functional import normalize
    from svilm_fast.kernels.grounding.fused import backward, forward
    from svilm_fast.kernels.grounding.fused.layout import Layout

    torch.manual_seed(0)

    def reserve(elements, dtype):
        return torch.from_numpy(np.zeros(elements, dtype))

    def unit(*shape):
        return normalize(torch.randn(shape), dim=-1).half()

    def dots_gradient(nouns, groups, upstream, buffer, first_video, videos, chunk_videos):
        captions = nouns.shape[0]
        beta_sum = torch.zeros(1)
        backward.launch(
            backward.dots_gradient_kernel, (1,), nouns, groups, torch.ones(captions),
            torch.tensor(5.0), upstream, None, None, torch.tensor(1.0), buffer, beta_sum, None,
            captions, videos, first_video, chunk_videos, 1, 1, 0,
            G=8, PADDED_G=8, PADDED_K=1, D=16, BLOCK_M=64, BLOCK_N=32, BLOCK_K=16, TILE_GROUP=8,
            PRECISION="ieee", LOSS=False, HALF=False, WRITE=True, NEED_BETA=True, NEED_SCALE=False,
        )
        return beta_sum

    def expected(nouns, groups, upstream):
        dots = (nouns.float() @ groups.float().T).view(len(nouns), -1, 8)
        p = torch.softmax(5 * dots, -1)
        r = (p * dots).sum(-1, keepdim=True)
        return (upstream.T[:, :, None] * p * (1 + 5 * (dots - r))).flatten(1)
"""
CASES = {
    "strides of the inputs": """
        far = 2**31 + 64
        memory = reserve(far + 4096, np.float16)
        groups = memory.as_strided((2, 3, 16), (far, 16, 1))
        groups.copy_(unit(2, 3, 16))
        layout = Layout(2, 1, 3, 1, 16, torch.float16)
        nouns = memory[512:].as_strided((1, 1, 16), (far, far, 1))
        nouns.copy_(unit(1, 1, 16))
        copy, rows, _, _ = forward.prepare(groups, nouns, torch.ones(1, 1).bool(), layout)
        assert torch.equal(copy.view(2, 8, 16)[:, :3], groups)
        assert torch.equal(rows.view(1, 1, 16), nouns)
    """,
    "last videos of very many": """
        videos = 2**24 + 4
        groups = reserve(videos * 128, np.float16).view(videos * 8, 16)
        groups[-32:] = unit(32, 16)
        nouns, captions = unit(5, 16), 5
        upstream = reserve(videos * captions, np.float32).view(videos, captions)
        upstream[-4:] = torch.randn(4, captions)
        buffer = torch.full((captions, 32), torch.nan)
        dots_gradient(nouns, groups, upstream, buffer, 2**24, videos, 4)
        torch.testing.assert_close(buffer, expected(nouns, groups[-32:], upstream[-4:]))
    """,
    "wide chunk": """
        width = 2**25 + 2**21
        chunk = width // 8
        groups = unit(32, 16)
        memory = reserve(chunk * 128, np.float16).view(-1, 16)
        memory[:32] = groups
        nouns = unit(64, 16)
        upstream = reserve(chunk * 64, np.float32).view(chunk, 64)
        upstream[:4] = torch.randn(4, 64)
        buffer = reserve(64 * width, np.float32).view(64, width)
        dots_gradient(nouns, memory, upstream, buffer, 0, chunk, chunk)
        found = torch.stack([buffer[row, :32] for row in range(64)])
        torch.testing.assert_close(found, expected(nouns, groups, upstream[:4]))
    """,
}


@pytest.mark.parametrize(
    "name",
    [
        "wide chunk",
        pytest.param("strides of the inputs", marks=pytest.mark.slow),
        pytest.param("last videos of very many", marks=pytest.mark.slow),
    ],
)
def test_offsets_beyond_32_bits(name):
    script = textwrap.dedent(COMMON) + textwrap.dedent(CASES[name])
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
