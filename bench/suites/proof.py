"""Inputs and oracle of one shape, and the tolerances for output and gradients of a provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from svilm_fast.bench.errors import Skipped, WrongResult
from svilm_fast.kernels.peers import CannotRun, Provider

# Tolerances of the relative RMS error against the float64 oracle, for output and gradients. They
# only separate wrong results from rounded ones; the ops' own tests are far stricter. A peer that
# rounds its keys to bf16 assigns some tokens to another group.
_CLOSE = {torch.float32: (1e-3, 1e-2), torch.float16: (2e-2, 5e-2), torch.bfloat16: (5e-2, 1e-1)}
_ROUGH = {torch.float32: (1e-3, 1e-2), torch.float16: (0.25, 0.5), torch.bfloat16: (0.25, 0.5)}
DIRECTIONS = ("forward", "backward", "both")


def first_output(result: Any) -> Tensor:
    """The result itself if it is a tensor, else its first field."""
    return result if isinstance(result, Tensor) else result[0]


def leaves(inputs: Mapping[str, Any]) -> list[Tensor]:
    """The floating inputs, changed to leaves that require a gradient."""
    tensors = [t for t in inputs.values() if isinstance(t, Tensor) and t.is_floating_point()]
    return [t.requires_grad_() for t in tensors]


def in_precision(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same inputs with detached copies of the floating tensors in that dtype."""
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

    `reference` takes the inputs as keyword arguments, like a provider, with floating tensors in the
    dtype `exact`.
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
        self._against: dict[Provider, Case] = {}

    def against(self, reference: Provider) -> Case:
        """The same tensors with another reference; made once for each."""
        if reference not in self._against:
            self._against[reference] = Case(
                reference, self.inputs, self.dtype, self.device, exact=self.exact
            )
        return self._against[reference]

    @cached_property
    def oracle(self) -> Tensor:
        """Output of the reference in the dtype `exact`."""
        with torch.no_grad():
            return first_output(self.reference(**in_precision(self.inputs, self.exact)))

    @cached_property
    def upstream(self) -> Tensor:
        """Gradient at the output; not uniform, so that a lost one is detected."""
        generator = torch.Generator(self.device).manual_seed(1)
        return torch.randn(
            self.oracle.shape, generator=generator, device=self.device, dtype=torch.float32
        )

    @cached_property
    def oracle_gradients(self) -> list[Tensor | None]:
        """Gradients of the floating inputs from the reference in the dtype `exact`."""
        exact = in_precision(self.inputs, self.exact)
        wanted = leaves(exact)
        output = first_output(self.reference(**exact))
        upstream = self.upstream.to(output.dtype)
        found = torch.autograd.grad(output, wanted, upstream, allow_unused=True)
        return list(found)

    def call(self, provider: Provider, direction: str) -> Callable[[], object]:
        """The timed call; for `backward` the graph is built here, before timing."""
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

        Gradients of scalars are not judged: they are sums that cancel, which peers in half
        precision miss. Raises `WrongResult` above the tolerance, which is larger for `rough`.
        """
        output_bar, gradient_bar = (_ROUGH if rough else _CLOSE)[self.dtype]
        with torch.set_grad_enabled(direction != "forward"):
            output = self._output(provider)
        error = _judged("output", relative_rms(output, self.oracle), output_bar)
        if direction == "forward":
            return error
        names = {id(value): name for name, value in self.inputs.items()}
        # The gradient of a bias that a norm cancels is only rounding; the largest norm scales it.
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
        except CannotRun as reason:
            raise Skipped(str(reason)) from None
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
        raise WrongResult(f"{what}: relative error {error:.1e} is above {bar:.0e}", error)
    return error
