"""Proves each provider right on the benchmark's own tensors, then times it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svilm_fast.bench.ceilings import Ceilings
from svilm_fast.bench.ops.record import Record
from svilm_fast.bench.peers import Provider, peers
from svilm_fast.bench.timing import Timing, host_time_us, measure
from svilm_fast.kernels.registry import Cost, Op

# Relative RMS error of the output against the float64 oracle; peers in half precision are far
# from the bar that the op's own tests hold, so this only tells a wrong result from a rough one.
_WRONG = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
DIRECTIONS = ("forward", "backward", "both")


def first_output(result: Any) -> Tensor:
    """The tensor that stands for a result: itself, or the first field of a tuple."""
    return result if isinstance(result, Tensor) else result[0]


def providers(op: Op, device: torch.device, shape: Mapping[str, Any]) -> dict[str, Provider]:
    """The op's reference path and its peers; its fused path too where there is a GPU.

    A case that only gives the fused path another workspace has no others.
    """
    if "workspace_bytes" in shape and device.type == "cuda":
        return {"fused": partial(op.api, backend="fused")}
    paths = ("fused", "reference") if device.type == "cuda" else ("reference",)
    own: dict[str, Provider] = {path: partial(op.api, backend=path) for path in paths}
    return own | peers(op.name)


def leaves(inputs: Mapping[str, Any]) -> list[Tensor]:
    """The floating inputs; each is made a leaf that wants a gradient."""
    tensors = [t for t in inputs.values() if isinstance(t, Tensor) and t.is_floating_point()]
    return [t.requires_grad_() for t in tensors]


def in_float64(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs with floating tensors in float64, detached."""
    return {
        k: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }


def relative_rms(value: Tensor, oracle: Tensor) -> float:
    """||value - oracle|| / ||oracle|| in float64."""
    difference = value.detach().double() - oracle.detach().double()
    return float(difference.norm() / oracle.detach().double().norm().clamp(min=1e-300))


def measure_case(
    op: Op,
    case: str,
    dtype: torch.dtype,
    device: torch.device,
    ceilings: Ceilings,
    *,
    budget_s: float,
    only: Callable[[str], bool] = lambda provider: True,
) -> Iterator[Record]:
    """Records of all providers and directions for one case; failures are records too."""
    # A compiled peer takes two specialisations per case (with and without gradients); past
    # PyTorch's limit of them it would run eagerly without a word.
    torch.compiler.reset()
    shape = op.cases[case]
    inputs = op.make_inputs(shape, dtype, device, 0)
    wanted = leaves(inputs)
    with torch.no_grad():
        oracle = first_output(op.reference(**in_float64(inputs)))
    generator = torch.Generator(device=device).manual_seed(1)
    upstream = torch.randn(oracle.shape, generator=generator, device=device, dtype=torch.float32)
    for name, provider in providers(op, device, shape).items():
        if not only(name):
            continue
        describe: Callable[..., Record] = partial(
            Record,
            op=op.name,
            case=case,
            shape=dict(shape),
            dtype=str(dtype).split(".")[1],
            provider=name,
        )
        try:
            result = provider(**inputs)
            if result is NotImplemented:
                continue
            error = relative_rms(first_output(result), oracle)
            del result
            if not error <= _WRONG[dtype]:
                yield describe(direction="both", status="wrong_result", error=error)
                continue
            for direction in DIRECTIONS:
                call = _call(provider, inputs, wanted, upstream, direction)
                timing = measure(call, device, budget_s=budget_s)
                host = None
                if direction == "forward":
                    fitting = int(budget_s * 1e3 / max(timing.median_ms, 1e-3))
                    host = host_time_us(call, device, count=min(50, max(3, fitting)))
                measured = _fractions(timing, op.cost(shape, dtype), direction, ceilings)
                yield describe(
                    direction=direction,
                    status="ok",
                    error=error,
                    samples_ms=timing.samples_ms,
                    median_ms=timing.median_ms,
                    p20_ms=timing.quantile(0.2),
                    p80_ms=timing.quantile(0.8),
                    host_us=host,
                    peak_extra_bytes=timing.peak_extra_bytes,
                    **measured,
                )
        except torch.OutOfMemoryError:
            yield describe(direction="both", status="oom")
        except Exception as failure:
            yield describe(direction="both", status=f"failed: {type(failure).__name__}: {failure}")
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _call(
    provider: Provider,
    inputs: dict[str, Any],
    wanted: list[Tensor],
    upstream: Tensor,
    direction: str,
) -> Callable[[], object]:
    if direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return provider(**inputs)

        return forward

    def gradients(output: Tensor, retain: bool) -> object:
        return torch.autograd.grad(
            output, wanted, upstream.to(output.dtype), retain_graph=retain, allow_unused=True
        )

    if direction == "backward":
        output = first_output(provider(**inputs))
        return partial(gradients, output, True)
    return lambda: gradients(first_output(provider(**inputs)), False)


def _fractions(timing: Timing, cost: Cost, direction: str, ceilings: Ceilings) -> dict[str, float]:
    flops = {"forward": cost.forward_flops, "backward": cost.backward_flops}
    moved = {"forward": cost.forward_bytes, "backward": cost.backward_bytes}
    flops["both"], moved["both"] = sum(flops.values()), sum(moved.values())
    seconds = timing.median_ms * 1e-3
    return {
        "product_fraction": flops[direction] / seconds / ceilings.product_flops,
        "copy_fraction": moved[direction] / seconds / ceilings.copy_bytes,
    }
