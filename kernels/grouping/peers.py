"""GroupViT's assignment with key and value projections, in plain PyTorch and compiled.

The projections are random rotations, so the result of the peer equals that of the op with absorbed
projections. The noise is drawn before the measurement, which favours the peer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..peers import Provider, compiled
from .reference import gumbel_noise

_prepared: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}


def _assignment(
    queries: Tensor,
    tokens: Tensor,
    group_bias: Tensor,
    noise: Tensor,
    to_key: Tensor,
    to_value: Tensor,
) -> Tensor:
    keys, values = tokens @ to_key, tokens @ to_value
    logits = (queries @ to_key) @ keys.mT + group_bias[..., None].to(queries.dtype) + noise
    soft = logits.softmax(dim=1)
    hard = torch.zeros_like(soft).scatter(1, soft.argmax(1, keepdim=True), 1)
    weights = hard - soft.detach() + soft
    pooled = (weights / (weights.sum(-1, keepdim=True) + 1)) @ values
    return pooled @ to_value.mT


_compiled = compiled(_assignment)


def _prepare(inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    queries, tokens, seeds = inputs["queries"], inputs["tokens"], inputs["seeds"]
    key = (tokens.data_ptr(), seeds.data_ptr(), *tokens.shape)
    if key not in _prepared:
        _prepared.clear()
        generator = torch.Generator(tokens.device).manual_seed(0)
        width = tokens.shape[-1]
        square = torch.randn(2, width, width, generator=generator, device=tokens.device)
        to_key, to_value = (torch.linalg.qr(matrix).Q.to(tokens.dtype) for matrix in square)
        ids = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        chunks = zip(seeds.split(16), ids.split(16))
        noise = [gumbel_noise(s, i, queries.shape[1]).mT.to(tokens.dtype) for s, i in chunks]
        _prepared[key] = (torch.cat(noise), to_key, to_value)
    return _prepared[key]


def _call(assignment: Provider, inputs: dict[str, Any]) -> Any:
    if inputs.get("mode") != "gumbel" or inputs.get("token_mask") is not None:
        return NotImplemented
    tensors = (inputs["queries"], inputs["tokens"], inputs["group_bias"])
    return assignment(*tensors, *_prepare(inputs))


def eager(**inputs: Any) -> Any:
    """Keys and values of every token, the full [b, G, L] logits, straight-through one-hot."""
    return _call(_assignment, inputs)


def compile_(**inputs: Any) -> Any:
    """`eager` under `torch.compile`."""
    return _call(_compiled, inputs)


PEERS: dict[str, Provider] = {"eager": eager, "compile": compile_}
