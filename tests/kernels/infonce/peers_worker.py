"""One gloo rank: this project's loss and other packages' on the same embeddings."""

import importlib
import importlib.util
import inspect
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from svilm_fast.kernels.backend import interpreted
from svilm_fast.kernels.infonce import distributed_infonce

BATCH, DIM = 6, 16


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_clip_loss(local_loss, gather_with_grad):
    # The package's own import needs torchvision; its losses are one file.
    folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    return module_at(Path(folder) / "loss.py").ClipLoss(
        local_loss=local_loss,
        gather_with_grad=gather_with_grad,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
    )


def both_directions(loss):
    def symmetric(videos, texts, scale):
        options = {"scale": scale, "head_dim": DIM}
        return (loss(videos, texts, **options) + loss(texts, videos, **options)) / 2

    return symmetric


def inf_cl_on_cpu(place, folder):
    """Inf-CL's fused ring loss in Triton's interpreter.

    Its kernels as they are but for what only a GPU has: the demand for one, and the rounding of
    products' operands to tf32, which is inline machine code.
    """
    flash, ring = importlib.import_module("inf_cl.flash"), importlib.import_module("inf_cl.ring")
    only_gpu = ("assert q.is_cuda and k.is_cuda", "tl.inline_asm_elementwise(")
    lines = inspect.getsource(flash).splitlines(keepends=True)
    path = Path(folder) / f"flash_on_cpu_{place}.py"
    path.write_text("".join(x for x in lines if not any(text in x for text in only_gpu)))
    copy = module_at(path)
    ring._flash_prob_forward = copy._flash_prob_forward
    ring._flash_prob_backward = copy._flash_prob_backward
    return both_directions(ring.cal_inf_loss)


def losses(place, folder, packages):
    yield "ours", distributed_infonce
    if "open_clip" in packages:
        for local_loss in (True, False):
            for with_grad in (True, False):
                yield f"open_clip {local_loss} {with_grad}", open_clip_loss(local_loss, with_grad)
    if "inf_cl" in packages:
        yield "inf_cl ring", both_directions(importlib.import_module("inf_cl").cal_ring_loss)
        if interpreted():
            yield "inf_cl fused", inf_cl_on_cpu(place, folder)


def results(folder, *packages):
    place = dist.get_rank()
    generator = torch.Generator().manual_seed(place)
    shape = (2, BATCH, DIM)
    rows = normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
    found = {}
    for name, loss_of in losses(place, folder, packages):
        videos, texts = (side.clone().requires_grad_() for side in rows)
        scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
        loss = loss_of(videos, texts, scale)
        gradients = torch.autograd.grad(loss, (videos, texts, scale))
        found[name] = {"loss": loss.detach().double(), "gradients": gradients}
    return found
