"""Operators and autograd of the fused path: one operator each way, with fake implementations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...operators import define, first_derivative_only, gradient_buffers, wanted
from ..pairs import diagonal_range
from . import backward as backward_kernels
from . import forward as forward_kernels
from .backward import Upstream
from .forward import CallTensors, Logs
from .layout import LINES

_LIBRARY = torch.library.Library("svilm_infonce", "DEF")
_BLOCK = (
    "Tensor videos, Tensor texts, Tensor scale, Tensor? video_ids, Tensor? text_ids,"
    " Tensor? weights, SymInt diagonal_offset"
)
_NEEDS = "bool need_videos, bool need_texts, bool need_scale, SymInt workspace_bytes"
_LOGS = "Tensor lines, Tensor factors, Tensor others, Tensor exponents, Tensor sound"
_LN2 = math.log(2)


def _block(videos: Tensor, texts: Tensor, *others: Any) -> CallTensors:
    return CallTensors(_aligned(videos), _aligned(texts), *others)


def _aligned(embeddings: Tensor) -> Tensor:
    # Tensor descriptors need an address and a row stride divisible by 16 bytes. PyTorch allocates
    # such addresses, but views and external memory may start anywhere, and a single row counts as
    # contiguous with any stride.
    misaligned = embeddings.data_ptr() % 16
    if misaligned or embeddings.stride() != (embeddings.shape[1], 1):
        return embeddings.clone(memory_format=torch.contiguous_format)
    return embeddings


def forward_op(*arguments: Any) -> tuple[Tensor, ...]:
    """Loss and `forward.Logs`; arguments as in the signature below."""
    *block, with_loss = arguments
    loss, logs = forward_kernels.forward(_block(*block), with_loss=with_loss)
    return loss, *logs


def loss_backward_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the loss, empty where not needed; arguments as in the signature below."""
    block, logs, (upstream,), needs, workspace_bytes = _backward_arguments(arguments)
    start, stop = diagonal_range(block.videos.shape[0], block.texts.shape[0], block.offset)
    return backward_kernels.backward(block, logs, stop - start, upstream, needs, workspace_bytes)


def partials_backward_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of log-sums and positives, empty where not needed; arguments as below."""
    block, logs, upstream, needs, workspace_bytes = _backward_arguments(arguments)
    dense = Upstream(*(gradient.contiguous() for gradient in upstream))
    return backward_kernels.backward(block, logs, 1, dense, needs, workspace_bytes)


def _backward_arguments(arguments: tuple[Any, ...]) -> tuple[CallTensors, Logs, Any, Any, int]:
    """Block, logs, upstream gradients, needed gradients and workspace of a backward operator."""
    inputs, logs, rest = arguments[:7], arguments[7:12], arguments[12:]
    return _block(*inputs), Logs(*logs), rest[:-4], rest[-4:-1], rest[-1]


def _fake_forward(videos, texts, *_):
    rows, columns = videos.shape[0], texts.shape[0]
    blocks = forward_kernels.line_blocks(rows) + forward_kernels.line_blocks(columns)
    return (
        videos.new_empty((), dtype=torch.float32),
        *(videos.new_empty((blocks * LINES,), dtype=torch.float32) for _ in range(3)),
        videos.new_empty((rows,), dtype=torch.float32),
        videos.new_empty((blocks,), dtype=torch.int32),
    )


def _fake_backward(*arguments):
    needs = arguments[-4:-1]
    return gradient_buffers(needs, arguments[:3])


for _name, _signature, _implementation, _fake in (
    (
        "forward",
        f"({_BLOCK}, bool with_loss) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        forward_op,
        _fake_forward,
    ),
    (
        "loss_backward",
        f"({_BLOCK}, {_LOGS}, Tensor upstream, {_NEEDS}) -> (Tensor, Tensor, Tensor)",
        loss_backward_op,
        _fake_backward,
    ),
    (
        "partials_backward",
        f"({_BLOCK}, {_LOGS}, Tensor row_upstream, Tensor column_upstream,"
        f" Tensor positive_upstream, {_NEEDS}) -> (Tensor, Tensor, Tensor)",
        partials_backward_op,
        _fake_backward,
    ),
):
    define(_LIBRARY, _name, _signature, _implementation, _fake)

_ops = torch.ops.svilm_infonce


def _save(ctx: Any, call: tuple[Any, ...], logs: list[Tensor]) -> None:
    """Save `call`, which `api._fused_call` built, and the logs for backward."""
    ctx.save_for_backward(*call[:6], *logs)
    ctx.diagonal_offset, ctx.workspace_bytes = call[6:]


def _gradients(ctx: Any, operator: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of videos, texts and scale; None where not needed."""
    saved = ctx.saved_tensors
    block, logs = saved[:6], saved[6:]
    needs = ctx.needs_input_grad[:3]
    found = operator(*block, ctx.diagonal_offset, *logs, *upstream, *needs, ctx.workspace_bytes)
    return wanted(needs, found)


class InfoNCELoss(torch.autograd.Function):
    """The loss of a block; saves the inputs and their log-sums."""

    @staticmethod
    def forward(ctx: Any, *call: Any) -> Tensor:
        loss, *logs = _ops.forward(*call[:-1], True)
        _save(ctx, call, logs)
        return loss

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return *_gradients(ctx, _ops.loss_backward, upstream), *(None,) * 5


class InfoNCEPartialSums(torch.autograd.Function):
    """Row log-sums [m], column log-sums [n] and positives [m], all minus `scale`.

    Relative to the scale, the values of confident pairs are small and precise. The scale cancels in
    every loss.
    """

    @staticmethod
    def forward(ctx: Any, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
        _, *logs = _ops.forward(*call[:-1], False)
        _save(ctx, call, logs)
        lines, _, _, exponents, _ = logs
        rows, columns = call[0].shape[0], call[1].shape[0]
        first_column = forward_kernels.line_blocks(rows) * LINES
        row_lines, column_lines = lines[:rows], lines[first_column : first_column + columns]
        return row_lines * _LN2, column_lines * _LN2, exponents * _LN2

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        videos, texts, scale = _gradients(ctx, _ops.partials_backward, *upstream)
        if scale is not None:
            for gradient in upstream:
                scale = scale - gradient.sum().to(scale.dtype)
        return videos, texts, scale, *(None,) * 5
