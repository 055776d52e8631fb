"""One case of an op: its inputs, its float64 oracle, and what a provider's result must meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from svilm_fast.bench.peers import Provider
from svilm_fast.bench.suites.benchmark import Skipped, WrongResult
from svilm_fast.kernels.registry import Op

# Relative RMS error against the float64 oracle that output and gradients may have. It only has to
# tell a wrong result from a rough one: the ops' own tests hold far closer bars, and a peer that
# rounds its keys to bf16 assigns some tokens to another group.
_OWN = {torch.float32: (1e-3, 1e-2), torch.float16: (2e-2, 5e-2), torch.bfloat16: (5e-2, 1e-1)}
_PEER = {torch.float32: (1e-3, 1e-2), torch.float16: (0.25, 0.5), torch.bfloat16: (0.25, 0.5)}
DIRECTIONS = ("forward", "backward", "both")


def first_output(result: Any) -> Tensor:
    """The tensor that stands for a result: itself, or the first field of a tuple."""
    return result if isinstance(result, Tensor) else result[0]


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


class Case:
    """The tensors of one shape, shared by all providers and directions."""

    def __init__(
        self, op: Op, shape: Mapping[str, Any], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.op = op
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self.inputs = op.make_inputs(shape, dtype, device, 0)
        self.wanted = leaves(self.inputs)

    @cached_property
    def oracle(self) -> Tensor:
        """Output of the reference in float64."""
        with torch.no_grad():
            return first_output(self.op.reference(**in_float64(self.inputs)))

    @cached_property
    def upstream(self) -> Tensor:
        """Gradient at the output; not uniform, so that a lost one is seen."""
        generator = torch.Generator(self.device).manual_seed(1)
        return torch.randn(
            self.oracle.shape, generator=generator, device=self.device, dtype=torch.float32
        )

    @cached_property
    def oracle_gradients(self) -> list[Tensor | None]:
        """Gradients of the floating inputs from the reference in float64."""
        exact = in_float64(self.inputs)
        wanted = leaves(exact)
        output = first_output(self.op.reference(**exact))
        found = torch.autograd.grad(output, wanted, self.upstream.double(), allow_unused=True)
        return list(found)

    def call(self, provider: Provider, direction: str) -> Callable[[], object]:
        """What is timed; the graph of `backward` is made here, outside the clock."""
        if direction == "forward":

            def forward() -> object:
                with torch.no_grad():
                    return provider(**self.inputs)

            return forward
        if direction == "backward":
            return partial(self._gradients, self._output(provider), True)
        return lambda: self._gradients(self._output(provider), False)

    def verify(self, provider: Provider, direction: str, *, peer: bool = False) -> float:
        """Relative error of the output, or the largest of output and gradients.

        Scalars' gradients are sums that cancel: peers in half precision miss them, so only those of
        tensors are judged. Raises `WrongResult` past the bar, which is wider for a peer.
        """
        output_bar, gradient_bar = (_PEER if peer else _OWN)[self.dtype]
        with torch.set_grad_enabled(direction != "forward"):
            output = self._output(provider)
        error = _judged("output", relative_rms(output, self.oracle), output_bar)
        if direction == "forward":
            return error
        found = zip(self.wanted, self._gradients(output, False), self.oracle_gradients, strict=True)
        names = {id(value): name for name, value in self.inputs.items()}
        for leaf, gradient, exact in found:
            if exact is None or leaf.dim() == 0:
                continue
            what = f"gradient of {names[id(leaf)]}"
            if gradient is None:
                raise WrongResult(f"no {what}", float("inf"))
            error = max(error, _judged(what, relative_rms(gradient, exact), gradient_bar))
        return error

    def _output(self, provider: Provider) -> Tensor:
        result = provider(**self.inputs)
        if result is NotImplemented:
            raise Skipped("the peer cannot express this case")
        return first_output(result)

    def _gradients(self, output: Tensor, retain: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            output,
            self.wanted,
            self.upstream.to(output.dtype),
            retain_graph=retain,
            allow_unused=True,
        )


def _judged(what: str, error: float, bar: float) -> float:
    if not error <= bar:
        raise WrongResult(f"{what}: relative error {error:.1e} is past {bar:.0e}", error)
    return error
