"""Memory is that of a chunk, also through autograd."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from svilm_fast.kernels.infonce import infonce


class LargestTensor(TorchDispatchMode):
    """Records the element count of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes())
        return out


def test_autograd_saves_nothing_quadratic(rows):
    batch, dim = 512, 8
    videos, texts = (rows(batch, dim, seed, torch.float32).requires_grad_() for seed in (0, 1))
    scale = torch.tensor(10.0, requires_grad=True)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = infonce(videos, texts, scale, workspace_bytes=1 << 16)
    loss.backward()
    inputs = 2 * batch * dim * 4
    assert inputs < sum(saved.values()) <= inputs + 4 * batch * 8


def test_only_a_chunk_of_the_matrix_is_live(rows):
    batch, workspace = 512, 1 << 16
    videos, texts = (rows(batch, 8, seed, torch.float32).requires_grad_() for seed in (0, 1))
    with LargestTensor() as largest:
        infonce(videos, texts, 10.0, workspace_bytes=workspace).backward()
    assert 0 < largest.elements <= workspace < batch * batch * 4
