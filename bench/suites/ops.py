"""Every registered op and its peers over the op's shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from svilm_fast.bench.errors import Skipped
from svilm_fast.bench.peers import is_peer
from svilm_fast.bench.suites.benchmark import SEED, Benchmark, Prepared, benchmark_id
from svilm_fast.bench.suites.call import prepared
from svilm_fast.bench.suites.proof import DIRECTIONS, Case
from svilm_fast.kernels.backend import Choice, gluon_wanted, reasons, use_backend
from svilm_fast.kernels.device import traits
from svilm_fast.kernels.launch import compiled_kernels
from svilm_fast.kernels.peers import CannotRun, Peer, Provider
from svilm_fast.kernels.registry import Op, OpCost, ops

# A call on a few CPU cores should take tens of milliseconds.
_CPU_FLOPS = 4e9
_CPU_BYTES = 256 * 2**20
# Only the current case stays in memory; its providers and directions share its tensors.
_held: dict[tuple[str, str, torch.dtype, torch.device], Case] = {}


def declared(
    device: torch.device, dtype: torch.dtype | None = None, *, compiled: bool | None = None
) -> Iterator[Benchmark]:
    """One benchmark per provider, case and direction.

    On a GPU the fused paths of all cases come first, then the other providers of the cases that
    targets compare, so that a run cut short has the most important figures. `compiled`: include
    peers under `torch.compile`; by default only on a GPU, because on a CPU the C++ compiler takes
    many seconds for each.
    """
    cuda = device.type == "cuda"
    compiled = cuda if compiled is None else compiled
    dtype = dtype or (torch.bfloat16 if cuda else torch.float32)
    every = [
        (op, case, shape, name, provider)
        for op in sorted(ops().values(), key=lambda op: op.priority)
        for case, shape in cases(op, device).items()
        for name, provider in providers(op, device, shape).items()
        if name != "compile" or compiled
    ]
    if cuda:
        every.sort(key=lambda one: _rank(one[0], one[1], one[3]))
    for op, case, shape, name, provider in every:
        yield from of_provider(op, case, shape, dtype, name, provider)


def cases(op: Op, device: torch.device) -> dict[str, Mapping[str, Any]]:
    """The op's own cases; on a CPU those that are small enough, and those declared for a CPU."""
    if device.type == "cuda":
        return dict(op.cases)
    fitting = {name: shape for name, shape in op.cases.items() if _fits(op, shape)}
    return {**fitting, **op.sizes.cpu}


def _fits(op: Op, shape: Mapping[str, Any]) -> bool:
    cost = op.cost(shape, torch.float32)
    flops = cost.forward_flops + cost.backward_flops
    return flops <= _CPU_FLOPS and cost.forward_bytes + cost.backward_bytes <= _CPU_BYTES


def _rank(op: Op, case: str, provider: str) -> int:
    """0 for the fused path, 1 for other providers of compared cases, 2 for the rest."""
    if provider == "fused":
        return 0
    return 1 if case in op.sizes.compared else 2


def providers(op: Op, device: torch.device, shape: Mapping[str, Any]) -> dict[str, Provider]:
    """The op's reference path and its peers, and on a GPU its fused path, also with Gluon.

    A case that only changes the workspace of the fused path has no other providers than these two.
    """
    if "workspace_bytes" in shape and device.type == "cuda":
        plain: dict[str, Provider] = {"fused": partial(_fused, op.api)}
        gluon = {"gluon": partial(_with_gluon, op.api, op.gluon)} if op.has_gluon else {}
        return plain | gluon
    own: dict[str, Provider] = {"reference": partial(op.api, backend="reference")}
    if device.type == "cuda":
        own = {"fused": partial(_fused, op.api), **own}
        if op.has_gluon:
            own["gluon"] = partial(_with_gluon, op.api, op.gluon)
    return {**own, **op.peers, **(op.gpu_peers if device.type == "cuda" else {})}


def _fused(api: Provider, **inputs: Any) -> Any:
    """The fused path with plain Triton kernels, also where the environment asks for Gluon."""
    with use_backend("fused"):
        return api(**inputs)


def _with_gluon(api: Provider, kernel: str | None, **inputs: Any) -> Any:
    """The fused path with a Gluon kernel of forward, if the op has one.

    Raises `CannotRun` for a GPU or a call that does not start it.
    """
    tensor = next(value for value in inputs.values() if isinstance(value, torch.Tensor))
    with use_backend("gluon"), compiled_kernels() as started, reasons() as why:
        if not gluon_wanted(tensor.device):
            found = traits(tensor.device)
            raise CannotRun(
                f"Gluon kernels need compute capability (9, 0), {found.name} has {found.capability}"
            )
        result = api(**inputs)
    if kernel is not None:
        _require(CannotRun, kernel, started, why)
    return result


def _require(error: type[Exception], kernel: str, started: list[Any], why: list[str]) -> None:
    """Raise `error` unless a kernel is among those that were started."""
    # The interpreter gives None.
    if kernel not in {one.name for one in started if one is not None}:
        reason = "; ".join(dict.fromkeys(why)) or "none of its launches has the shape for it"
        raise error(f"the call does not start {kernel}: {reason}")


def release() -> None:
    """Free the tensors of the current case."""
    _held.clear()


def of_provider(
    op: Op,
    case: str,
    shape: Mapping[str, Any],
    dtype: torch.dtype,
    name: str,
    provider: Provider,
) -> Iterator[Benchmark]:
    """A provider of one case, in each direction that a comparison judges.

    With Gluon, a direction whose kernels are those of the fused path is left out.
    """
    label = str(dtype).removeprefix("torch.")
    plain = {"forward": op.gluon is None, "backward": op.gluon_backward is None}
    for direction in DIRECTIONS:
        if name == "gluon" and plain.get(direction):
            continue
        yield Benchmark(
            benchmark_id("ops", op.name, case, label, direction, name),
            "ops",
            partial(_prepare, op, case, shape, dtype, name, provider, direction),
        )


def _prepare(
    op: Op,
    case: str,
    shape: Mapping[str, Any],
    dtype: torch.dtype,
    name: str,
    provider: Provider,
    direction: str,
    device: torch.device,
) -> Prepared:
    unit, key = op.unit
    held = _case(op, case, shape, dtype, device)
    cost: OpCost | None = op.cost(shape, dtype)
    facts = {"shape": dict(shape)} | _sources(op, name)
    if isinstance(provider, Peer):
        facts["differs"] = provider.differs
        held = held if provider.reference is None else held.against(provider.reference)
        cost = cost if provider.same_floor else None
    ready = prepared(
        held,
        provider,
        direction,
        cost,
        units={unit: float(shape[key])},
        facts=facts,
        rough=is_peer(name),
    )
    if name not in ("fused", "gluon"):
        return ready
    # Backward chooses its kernels when it runs, after the provider has returned.
    # The provider itself requires the kernel of forward.
    kernel = op.gluon_backward if name == "gluon" and direction != "forward" else None
    choice: Choice = "gluon" if name == "gluon" else "fused"
    return replace(
        ready,
        call=partial(_chosen, choice, ready.call),
        verify=partial(_chosen, choice, ready.verify, kernel),
    )


def _chosen(choice: Choice, function: Callable[[], Any], kernel: str | None = None) -> Any:
    """Call `function` with a choice of kernels; `Skipped` if it does not start `kernel`."""
    with use_backend(choice), compiled_kernels() as started, reasons() as why:
        result = function()
    if kernel is not None:
        _require(Skipped, kernel, started, why)
    return result


def _case(
    op: Op, name: str, shape: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> Case:
    key = (op.name, name, dtype, device)
    if key not in _held:
        release()
        # A compiled peer needs two specialisations per case (with and without gradients). Above
        # PyTorch's limit it would silently run eagerly.
        torch.compiler.reset()
        _held[key] = Case(op.reference, op.make_inputs(shape, dtype, device, SEED), dtype, device)
    return _held[key]


def _sources(op: Op, provider: str) -> dict[str, str]:
    """A hash of the files that determine the machine code of the fused path."""
    if provider not in ("fused", "gluon"):
        return {}
    texts = b"".join(path.read_bytes() for path in op.kernel_paths)
    return {"kernel_sources": hashlib.sha256(texts).hexdigest()[:16]}
