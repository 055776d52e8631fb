"""Host cost of a call: argument checks and dispatch, and the planning of kernel launches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from svilm_fast.bench.errors import WrongResult
from svilm_fast.bench.suites.benchmark import SEED, Benchmark, Prepared, benchmark_id
from svilm_fast.bench.suites.proof import Case
from svilm_fast.kernels.device import H200, assume_traits
from svilm_fast.kernels.launch import record_launches
from svilm_fast.kernels.registry import Op, Variant, ops

_CPU = torch.device("cpu")


def declared(device: torch.device) -> Iterator[Benchmark]:
    """A tiny call of every op on the CPU, and the planning of every declared variant for an H200.

    `device` is not used.
    """
    for op in ops().values():
        yield Benchmark(
            benchmark_id("host", op.name, "tiny_call", "float32", "forward", "reference"),
            "host",
            partial(_tiny, op),
        )
        for variant in op.variants:
            case = "plan_" + "_".join(variant.label.replace("=", "").replace(",", "").split())
            yield Benchmark(
                benchmark_id("host", op.name, case, "-", "-", "fused"),
                "host",
                partial(_plan, variant),
            )


def _tiny(op: Op, device: torch.device) -> Prepared:
    inputs = op.make_inputs(op.sizes.tiny, torch.float32, _CPU, SEED)

    def call() -> object:
        with torch.no_grad():
            return op.api(**inputs, backend="reference")

    case = Case(op.reference, inputs, torch.float32, _CPU)
    verify = partial(case.verify, partial(op.api, backend="reference"), "forward")
    return Prepared(call=call, verify=verify, units={"calls": 1.0})


def _plan(variant: Variant, device: torch.device) -> Prepared:
    def call() -> int:
        with assume_traits(H200), record_launches() as launches:
            variant.run()
        return len(launches)

    def verify() -> None:
        if call() == 0:
            raise WrongResult(f"{variant.label} plans no launch", float("inf"))

    return Prepared(
        call=call, verify=verify, units={"launches": float(call())}, facts={"traits": H200.name}
    )
