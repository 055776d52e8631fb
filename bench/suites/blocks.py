"""The blocks of the encoders, and attention through every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from svilm_fast.bench.errors import Skipped
from svilm_fast.bench.suites.benchmark import SEED, Benchmark, Prepared, benchmark_id
from svilm_fast.bench.suites.call import prepared
from svilm_fast.bench.suites.proof import DIRECTIONS, Case
from svilm_fast.kernels.backend import use_backend
from svilm_fast.kernels.peers import Provider
from svilm_fast.kernels.registry import OpCost
from svilm_fast.models import flops
from svilm_fast.models.attention import (
    AttentionRequest,
    KeyPadding,
    attend,
    availability,
    backend_names,
)
from svilm_fast.models.config import VideoConfig
from svilm_fast.models.grouping_block import GroupingBlock
from svilm_fast.models.initialisation import initialise
from svilm_fast.models.transformer import Block, Span


@dataclass(frozen=True)
class Size:
    """b sequences of L tokens and G groups, C wide."""

    batch: int
    tokens: int
    width: int
    heads: int
    groups: int = 0
    padded: bool = False


_SIZES: dict[str, dict[str, dict[str, Size]]] = {
    "cpu": {
        "video_block": {"clips_2": Size(2, 264, 128, 4)},
        "text_block": {"captions_32": Size(32, 24, 128, 4, padded=True)},
        "grouping_block": {"clips_2": Size(2, 256, 128, 4, groups=8)},
        "attention": {
            "clips_2": Size(2, 264, 128, 4),
            "lengths_64_to_256": Size(4, 256, 128, 4, padded=True),
        },
    },
    "cuda": {
        "video_block": {"clips_16": Size(16, 3168, 768, 12)},
        "text_block": {"captions_768": Size(768, 32, 768, 12, padded=True)},
        "grouping_block": {"clips_16": Size(16, 3136, 768, 12, groups=32)},
        "attention": {
            "clips_8": Size(8, 3168, 768, 12),
            "captions_768": Size(768, 32, 768, 12, padded=True),
            "lengths_784_to_3136": Size(8, 3136, 768, 12, padded=True),
        },
    },
}
# The current case, and the timed call where the provider is not an attention backend.
_held: dict[tuple[str, Size], tuple[Case, Provider]] = {}


def declared(device: torch.device) -> Iterator[Benchmark]:
    """One benchmark per block, size, backend and direction."""
    dtype = "bf16_autocast" if device.type == "cuda" else "float32"
    for name, sizes in _SIZES[device.type].items():
        providers: tuple[str, ...] = ("svilm",)
        if name == "attention":
            dtype = "bfloat16" if device.type == "cuda" else "float32"
            providers = tuple(each for each in backend_names() if each != "auto")
        for case, size in sizes.items():
            for provider in providers:
                for direction in DIRECTIONS:
                    yield Benchmark(
                        benchmark_id("blocks", name, case, dtype, direction, provider),
                        "blocks",
                        partial(_prepare, name, size, provider, direction),
                    )


def _prepare(
    name: str, size: Size, provider: str, direction: str, device: torch.device
) -> Prepared:
    if name == "attention":
        _require(provider, size, device)
    key = (name, size)
    if key not in _held:
        release()
        _held[key] = _MAKERS[name](size, device)
    case, block = _held[key]
    return prepared(
        case,
        partial(_attention, provider) if name == "attention" else partial(_autocast, block, device),
        direction,
        _cost(name, size, device),
        units={"sequences": float(size.batch), "tokens": float(_real_tokens(size))},
        facts={"shape": vars(size)},
        # Rounded keys may assign a token to another group.
        rough=name == "grouping_block",
    )


def release() -> None:
    """Free the tensors and weights of the current case."""
    _held.clear()


def _require(provider: str, size: Size, device: torch.device) -> None:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    request = AttentionRequest(device, dtype, size.width // size.heads, size.padded)
    usable, reason = availability(request)[provider]
    if not usable:
        raise Skipped(reason)


def _autocast(call: Callable[..., Any], device: torch.device, **inputs: Any) -> Any:
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return call(**inputs)


def _lengths(size: Size, device: torch.device | str) -> Tensor:
    """Sequence lengths, evenly spaced from a quarter of L to L; L if nothing is padded."""
    if not size.padded:
        return torch.full((size.batch,), size.tokens, device=device)
    shares = torch.linspace(0.25, 1, size.batch, dtype=torch.float64)
    return (shares * size.tokens).round().long().clamp(min=1).to(device)


def _real_tokens(size: Size) -> int:
    return int(_lengths(size, "cpu").sum())


def _padding(size: Size, device: torch.device) -> KeyPadding | None:
    if not size.padded:
        return None
    place = torch.arange(size.tokens, device=device)
    return KeyPadding(place < _lengths(size, device)[:, None])


def _normal(size: Size, device: torch.device, *shape: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(SEED + len(shape))
    return torch.randn(*shape, generator=generator, device=device)


def _case(
    module: nn.Module,
    inputs: dict[str, Tensor],
    run: Callable[[nn.Module, dict[str, Tensor], dict[str, Tensor]], Tensor],
    device: torch.device,
) -> tuple[Case, Provider]:
    """A case with the block's parameters as inputs, so that their gradients are verified too."""
    torch.manual_seed(SEED)
    initialise(module)
    parameters = {f"parameter {k}": v.detach() for k, v in module.named_parameters()}

    def call(**everything: Tensor) -> Tensor:
        own = {k.removeprefix("parameter "): everything.pop(k) for k in parameters}
        return run(module, own, everything)

    def reference(**everything: Tensor) -> Tensor:
        with use_backend("reference"):
            return call(**everything)

    on_gpu = device.type == "cuda"
    bars = torch.bfloat16 if on_gpu else torch.float32
    exact = torch.float32 if on_gpu else torch.float64
    return Case(reference, inputs | parameters, bars, device, exact=exact), call


def _transformer(size: Size, device: torch.device) -> tuple[Case, Provider]:
    padding = _padding(size, device)
    span = Span(size.batch, size.tokens, torch.arange(size.tokens, device=device), padding)
    real = None if padding is None else padding.mask.flatten()

    def run(module: nn.Module, own: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        states = functional_call(module, own, (inputs["states"], (span,)))
        return states if real is None else states.masked_fill(~real[:, None], 0)

    with device:
        module = Block(size.width, size.heads, 4.0, "auto")
    states = _normal(size, device, size.batch * size.tokens, size.width)
    return _case(module, {"states": states}, run, device)


def _grouping(size: Size, device: torch.device) -> tuple[Case, Provider]:
    ids = torch.arange(size.tokens, device=device).expand(size.batch, -1)
    seeds = torch.arange(size.batch, device=device) * 7919

    def run(module: nn.Module, own: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        known = {"mode": "gumbel", "seeds": seeds, "token_ids": ids, "padding": None}
        return functional_call(module, own, (inputs["groups"], inputs["tokens"]), known)[0]

    with device:
        module = GroupingBlock(
            size.width,
            size.heads,
            size.groups,
            mlp_ratio=4.0,
            mixer_ratio=0.5,
            temperature=1.0,
            backend="auto",
        )
    inputs = {
        "groups": _normal(size, device, size.batch, size.groups, size.width),
        "tokens": _normal(size, device, size.batch, size.tokens, size.width),
    }
    return _case(module, inputs, run, device)


def _attention(provider: str, **inputs: Any) -> Tensor:
    """Attention with undefined padding rows set to 0, which costs every backend the same."""
    padding = inputs["padding"]
    attended = attend(
        inputs["query"],
        inputs["key"],
        inputs["value"],
        padding=padding,
        query_padding=padding,
        backend=provider,
    )
    return attended if padding is None else attended.masked_fill(~padding.mask[..., None, None], 0)


def _attention_case(size: Size, device: torch.device) -> tuple[Case, Provider]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    whole = _normal(size, device, 3, size.batch, size.tokens, size.heads, size.width // size.heads)
    query, key, value = (part.to(dtype) for part in whole.unbind())
    inputs = {"query": query, "key": key, "value": value, "padding": _padding(size, device)}
    exact = torch.float32 if device.type == "cuda" else torch.float64
    reference = partial(_attention, "reference")
    return Case(reference, inputs, dtype, device, exact=exact), reference


_MAKERS: dict[str, Callable[[Size, torch.device], tuple[Case, Provider]]] = {
    "video_block": _transformer,
    "text_block": _transformer,
    "grouping_block": _grouping,
    "attention": _attention_case,
}


def _cost(name: str, size: Size, device: torch.device) -> OpCost:
    """FLOPs of the real tokens only; least bytes: inputs, outputs and weights."""
    lengths = _lengths(size, "cpu").tolist()
    tokens = float(size.batch * size.tokens * size.width)
    found, moved = flops.Flops(), 2 * tokens * 4
    for length in lengths:
        if name == "attention":
            found += flops.attention(length, length, size.width)
        elif name == "grouping_block":
            sizes = VideoConfig(num_groups=size.groups, width=size.width, heads=size.heads)
            found += flops.grouping_block(length, sizes)
        else:
            found += flops.block(length, size.width, 4.0)
    if name == "attention":
        moved = 4 * tokens * (2 if device.type == "cuda" else 4)
    else:
        moved += 12 * size.width**2 * 4.0
    return OpCost(float(found.forward), moved, float(found.backward), 2 * moved)
