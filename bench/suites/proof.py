"""Inputs and oracle of one shape, and what a provider's output and gradients must meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from svilm_fast.bench.errors import Skipped, WrongResult
from svilm_fast.kernels.peers import PeerMissing, Provider

# Relative RMS error against the float64 oracle that output and gradients may have. It only has to
# tell a wrong result from a rough one: the ops' own tests hold far closer bars, and a peer that
# rounds its keys to bf16 assigns some tokens to another group.
_CLOSE = {torch.float32: (1e-3, 1e-2), torch.float16: (2e-2, 5e-2), torch.bfloat16: (5e-2, 1e-1)}
_ROUGH = {torch.float32: (1e-3, 1e-2), torch.float16: (0.25, 0.5), torch.bfloat16: (0.25, 0.5)}
DIRECTIONS = ("forward", "backward", "both")


def first_output(result: Any) -> Tensor:
    """The tensor that stands for a result: itself, or the first field of a tuple."""
    return result if isinstance(result, Tensor) else result[0]


def leaves(inputs: Mapping[str, Any]) -> list[Tensor]:
    """The floating inputs; each is made a leaf that wants a gradient."""
    tensors = [t for t in inputs.values() if isinstance(t, Tensor) and t.is_floating_point()]
    return [t.requires_grad_() for t in tensors]


def in_precision(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same inputs with floating tensors in that dtype, copied off the graph."""
    return {
        k: v.detach().clone().to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }


def relative_rms(value: Tensor, oracle: Tensor, *, least: float = 1e-300) -> float:
    """||value - oracle|| / max(||oracle||, least) in float64."""
    difference = value.detach().double() - oracle.detach().double()
    return float(difference.norm() / oracle.detach().double().norm().clamp(min=least))


class Case:
    """The tensors of one shape, shared by all providers and directions.

    `reference` takes the inputs as keyword arguments, like a provider; its floating inputs are in
    `exact` precision, that of the oracle.
    """

    def __init__(
        self,
        reference: Provider,
        inputs: dict[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        *,
        exact: torch.dtype = torch.float64,
    ) -> None:
        self.reference = reference
        self.inputs = inputs
        self.dtype = dtype
        self.device = device
        self.exact = exact
        self.wanted = leaves(self.inputs)

    @cached_property
    def oracle(self) -> Tensor:
        """Output of the reference in the exact precision."""
        with torch.no_grad():
            return first_output(self.reference(**in_precision(self.inputs, self.exact)))

    @cached_property
    def upstream(self) -> Tensor:
        """Gradient at the output; not uniform, so that a lost one is seen."""
        generator = torch.Generator(self.device).manual_seed(1)
        return torch.randn(
            self.oracle.shape, generator=generator, device=self.device, dtype=torch.float32
        )

    @cached_property
    def oracle_gradients(self) -> list[Tensor | None]:
        """Gradients of the floating inputs from the reference in the exact precision."""
        exact = in_precision(self.inputs, self.exact)
        wanted = leaves(exact)
        output = first_output(self.reference(**exact))
        upstream = self.upstream.to(output.dtype)
        found = torch.autograd.grad(output, wanted, upstream, allow_unused=True)
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

    def verify(self, provider: Provider, direction: str, *, rough: bool = False) -> float:
        """Relative error of the output, or the largest of output and gradients.

        Scalars' gradients are sums that cancel: peers in half precision miss them, so only those of
        tensors are judged. Raises `WrongResult` past the bar, which is wider for `rough`.
        """
        output_bar, gradient_bar = (_ROUGH if rough else _CLOSE)[self.dtype]
        with torch.set_grad_enabled(direction != "forward"):
            output = self._output(provider)
        error = _judged("output", relative_rms(output, self.oracle), output_bar)
        if direction == "forward":
            return error
        names = {id(value): name for name, value in self.inputs.items()}
        # A bias that a norm cancels has no gradient but rounding: it is judged by the largest one.
        norms = [float(exact.norm()) for exact in self.oracle_gradients if exact is not None]
        least = gradient_bar * max(norms)
        for leaf, gradient, exact in zip(
            self.wanted, self._gradients(output, False), self.oracle_gradients, strict=True
        ):
            if exact is None or leaf.dim() == 0:
                continue
            what = f"gradient of {names[id(leaf)]}"
            if gradient is None:
                raise WrongResult(f"no {what}", float("inf"))
            distance = relative_rms(gradient, exact, least=least)
            error = max(error, _judged(what, distance, gradient_bar))
        return error

    def _output(self, provider: Provider) -> Tensor:
        try:
            result = provider(**self.inputs)
        except PeerMissing as missing:
            raise Skipped(str(missing)) from None
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
