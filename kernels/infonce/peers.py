"""Symmetric InfoNCE in plain PyTorch, compiled, and from other packages."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from ..backend import interpreted
from ..device import traits
from ..peers import CannotRun, Peer, Provider, compiled, module_of
from . import reference
from .options import InfonceOptions

# The bias with which SigLIP starts (arXiv 2303.15343).
SIGMOID_BIAS = -10.0
# Elements of a chunk of the sigmoid oracle.
CHUNK_ELEMENTS = 1 << 22


def _expressible(inputs: dict[str, Any]) -> bool:
    square = inputs["videos"].shape == inputs["texts"].shape
    plain = not {"pair_ids", "workspace_bytes"} & inputs.keys()
    return square and plain and not inputs.get("diagonal_offset")


def _materialised(videos: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    logits = scale.to(videos.dtype) * videos @ texts.T
    labels = torch.arange(len(videos), device=videos.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


_compiled = compiled(_materialised)


def eager(**inputs: Any) -> Any:
    """The full matrix of logits and cross-entropy in both directions, as in CLIP's paper."""
    if not _expressible(inputs):
        return NotImplemented
    return _materialised(inputs["videos"], inputs["texts"], inputs["scale"])


def compile_(**inputs: Any) -> Any:
    """`eager` under `torch.compile`."""
    if not _expressible(inputs):
        return NotImplemented
    return _compiled(videos=inputs["videos"], texts=inputs["texts"], scale=inputs["scale"])


def _kernels_run(inputs: dict[str, Any]) -> bool:
    """Whether a peer's Triton kernels can take this call."""
    return _expressible(inputs) and (inputs["videos"].is_cuda or interpreted())


def inf_cl(**inputs: Any) -> Any:
    """Inf-CL's flash loss, once per direction."""
    if not _expressible(inputs) or not inputs["videos"].is_cuda:
        return NotImplemented
    loss = module_of("inf_cl", "inf_cl").cal_flash_loss
    videos, texts, scale = inputs["videos"], inputs["texts"], inputs["scale"]
    head = next((size for size in (256, 128, 64) if videos.shape[1] % size == 0), None)
    if head is None:
        return NotImplemented
    rows = loss(videos, texts, scale=scale, head_dim=head)
    columns = loss(texts, videos, scale=scale, head_dim=head)
    return (rows.mean() + columns.mean()) / 2


@functools.cache
def _open_clip_loss() -> Any:
    """open_clip's `ClipLoss`, loaded from its file, because the package imports torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise CannotRun("open_clip_torch is not installed")
    path = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("svilm_open_clip_loss", path)
    if spec is None or spec.loader is None:
        raise CannotRun(f"open_clip_torch has no {path.name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


def open_clip(**inputs: Any) -> Any:
    """open_clip's `ClipLoss` on one rank."""
    if not _expressible(inputs):
        return NotImplemented
    return _open_clip_loss()(
        inputs["videos"], inputs["texts"], inputs["scale"].to(inputs["videos"].dtype)
    )


# Peers that take the temperature as a number. It is read once per tensor, because every reading
# waits for the GPU.
_temperatures = WeakTensorKeyDictionary()


def _temperature(scale: Tensor) -> float:
    if scale not in _temperatures:
        _temperatures[scale] = 1 / float(scale.detach())
    return float(_temperatures[scale])


def memeff(**inputs: Any) -> Any:
    """memeff's CLIP loss for normalised rows, without its change of the gradient's scale."""
    if not _kernels_run(inputs):
        return NotImplemented
    loss = module_of("memeff", "memeff").MemoryEfficientCLIPLoss(
        temperature=_temperature(inputs["scale"]), normalized_inputs=True, stable=False
    )
    return loss(inputs["videos"], inputs["texts"])


def siglip_kernel(**inputs: Any) -> Any:
    """siglip-kernel's sigmoid loss through the backend that it chooses itself."""
    if not _kernels_run(inputs):
        return NotImplemented
    videos, scale = inputs["videos"], inputs["scale"]
    bias = torch.full((), SIGMOID_BIAS, device=videos.device)
    loss = module_of("siglip-kernel", "siglip_kernel").fused_siglip_loss
    return loss(videos, inputs["texts"], scale.log(), bias)


def sigmoid_loss(**inputs: Any) -> Tensor:
    """-1/B sum_ij log sigmoid(y_ij (alpha a_ij - 10)), y_ij = 1 for pairs, else -1; in chunks."""
    videos, texts, scale = inputs["videos"], inputs["texts"], inputs["scale"]
    rows = max(1, CHUNK_ELEMENTS // len(texts))

    def chunk(part: Tensor, texts: Tensor, scale: Tensor, start: int) -> Tensor:
        logits = scale * (part @ texts.T) + SIGMOID_BIAS
        # log sigmoid(-x) = log sigmoid(x) - x
        terms = F.logsigmoid(-logits).sum()
        return terms + logits.diagonal(start).sum()

    parts = [
        checkpoint(chunk, part, texts, scale, number * rows, use_reentrant=False)
        for number, part in enumerate(videos.split(rows))
    ]
    return -torch.stack(parts).sum() / len(videos)


def liger(**inputs: Any) -> Any:
    """Liger's fused linear cross-entropy: the texts are the weights of a classifier of videos."""
    if not _kernels_run(inputs):
        return NotImplemented
    loss = module_of("liger-kernel", "liger_kernel.transformers.fused_linear_cross_entropy")
    videos, texts = inputs["videos"], inputs["texts"]
    labels = torch.arange(len(videos), device=videos.device)
    logits_scale = inputs["scale"].to(videos.dtype)
    return loss.LigerFusedLinearCrossEntropyLoss()(texts, logits_scale * videos, labels)


def liger_hopper(**inputs: Any) -> Any:
    """Liger's scaled cross-entropy, one kernel for each direction of autograd on sm_90."""
    videos, texts = inputs["videos"], inputs["texts"]
    if not _expressible(inputs) or not videos.is_cuda or videos.dtype != torch.bfloat16:
        return NotImplemented
    found = traits(videos.device)
    if found.capability != (9, 0):
        # Elsewhere the package would fall back to plain PyTorch.
        raise CannotRun(
            f"this kernel needs compute capability (9, 0), {found.name} has {found.capability}"
        )
    loss = module_of("liger-kernel", "liger_kernel.ops.fused_linear_scaled_cross_entropy")
    module_of("liger-kernel[cutedsl]", "cutlass")
    labels = torch.arange(len(videos), device=videos.device)
    apply = loss.LigerFusedLinearScaledCrossEntropyFunction.apply
    return apply(videos, texts, labels, _temperature(inputs["scale"])).mean()


def one_direction(**inputs: Any) -> Tensor:
    """The mean of -log softmax_j(alpha a_ij) at the positives: cross-entropy of the rows only."""
    found = reference.partials(inputs["videos"], inputs["texts"], inputs["scale"], InfonceOptions())
    row_lse, _, positives = found
    return (row_lse - positives).mean()


_NO_SCALE = "no gradient of the scale, which is a constant"
_ROWS_ONLY = "cross-entropy from videos to texts only: one direction of two"

PEERS: dict[str, Provider] = {"eager": eager, "compile": compile_, "open_clip": open_clip}
GPU_PEERS: dict[str, Provider] = {
    "inf_cl": inf_cl,
    "memeff": Peer(memeff, _NO_SCALE),
    "siglip_kernel_sigmoid": Peer(
        siglip_kernel,
        "sigmoid loss of every pair by itself, no softmax; forward computes the gradients as well",
        sigmoid_loss,
    ),
    "liger_one_direction": Peer(
        liger, f"{_ROWS_ONLY}; forward computes the gradients as well", one_direction
    ),
    "liger_hopper_one_direction": Peer(liger_hopper, f"{_ROWS_ONLY}; {_NO_SCALE}", one_direction),
}
