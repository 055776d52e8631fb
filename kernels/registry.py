"""The registry of ops, read by tests, the static table, benchmarks and reports."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .launch import Launch, Product, tensor_bytes
from .peers import Provider


@dataclass(frozen=True)
class OpCost:
    """Lower bounds of one call: FLOPs of the matrix products and bytes moved through memory."""

    forward_flops: float
    forward_bytes: float
    backward_flops: float
    backward_bytes: float


@dataclass(frozen=True)
class RoleWork:
    """A role of the warps of a kernel, for the static model.

    Attributes:
        warps: warps of the role.
        share: iterations of its loop per tile; 0.5 for each of two groups that take turns, the
            depth's steps for a role whose loop takes a step.
        steps: iterations of its loop that are one, where loops over tiles and depth are flattened.
        trips: iterations of each loop inside an iteration, in the order of the machine code.
        copies, stages: copies of an iteration that go through a ring, and copies that it holds; 0
            without a ring.
        shared_bytes, shared_by: bytes of the copies in its loop that are made once for so many
            tiles.
    """

    warps: int
    share: float = 1.0
    steps: int = 1
    trips: tuple[int, ...] = ()
    copies: int = 0
    stages: int = 0
    shared_bytes: float = 0.0
    shared_by: float = 1.0


@dataclass(frozen=True)
class TileWork:
    """What the static model must know about a tile of a kernel, besides its machine code.

    Attributes:
        flops: FLOPs of the products that a tile needs, without repeated ones.
        memory_bytes: least bytes that a tile moves through DRAM.
        looped: a tile is an iteration of the outermost loop with products; else a whole program.
        steps: iterations of this loop per tile, where the loops over tiles and depth are flattened.
        trips: iterations of each loop inside a tile, in the order of the machine code.
        roles: for a kernel whose warps have roles (`gl.warp_specialize`), its roles in the order
            of the machine code. They replace `looped`, `steps` and `trips`.
        program_tiles: tiles of a program with roles, which share its start and its end.
    """

    flops: float
    memory_bytes: float = 0.0
    looped: bool = True
    steps: int = 1
    trips: tuple[int, ...] = ()
    roles: tuple[RoleWork, ...] = ()
    program_tiles: int = 1


@dataclass(frozen=True)
class LaunchWork:
    """What the static model must know about a launch of a whole op.

    Attributes:
        part: the part of the op's time that the launch belongs to.
        tiles: tiles that a program computes, for a kernel whose tiles the static table predicts.
        memory_bytes: bytes that the launch moves through DRAM, for a kernel that only does this.
        row: the kernel's name in the static table, if it is not its own.
    """

    part: str
    tiles: float = 0.0
    memory_bytes: float = 0.0
    row: str | None = None


def memory_pass(part: str) -> Callable[[Launch], LaunchWork]:
    """The work of a kernel that reads or writes each of its tensors once."""
    return lambda launch: LaunchWork(part, memory_bytes=tensor_bytes(launch))


@dataclass(frozen=True)
class Target:
    """A call whose time the static model predicts as a whole.

    Attributes:
        label: what people call it.
        sizes: the `case` of the op's cost, in bf16.
        run: calls the fused host functions on `meta` tensors, as in `Variant`.
        variants: kernel -> variant that has the row of this kernel in the static table.
        passes: the passes that `run` makes: forward, backward.
    """

    label: str
    sizes: Mapping[str, Any]
    run: Callable[[], object]
    variants: Mapping[str, str]
    passes: tuple[str, ...] = ("forward", "backward")


@dataclass(frozen=True)
class WholeOp:
    """How the static model adds up the time of a whole op.

    Attributes:
        targets: the calls that it predicts.
        launches: kernel -> the work of a launch; for every kernel that a target starts.
        product: the part to which a product of the library belongs.
        copies: the part of copies that PyTorch makes.
    """

    targets: tuple[Target, ...]
    launches: Mapping[str, Callable[[Launch], LaunchWork]]
    product: Callable[[Product], str] = lambda product: "products"
    copies: str = "rest"


@dataclass(frozen=True)
class Variant:
    """One specialisation for the static table.

    `run()` calls the fused host functions (not the dispatcher) on `meta` tensors under
    `record_launches()`, so that the compiled specialisation is the one that a real call would use.
    `targets` names the architectures on which a real call would start these kernels. `counted`
    says whether the table of counts contains the host instructions of `run()`.
    """

    op: str
    label: str
    run: Callable[[], object]
    targets: tuple[str, ...] = ("sm_80", "sm_90", "sm_100")
    counted: bool = False


@dataclass(frozen=True)
class Sizes:
    """Sizes at which gates and benchmarks run an op, besides its `cases`.

    Attributes:
        tiny: so small that checks and dispatch take longer than the arithmetic.
        small: counted and checked on any machine.
        large: so large that its [B, B] matrix exceeds the memory of the chunked paths.
        cpu: name -> sizes that are measured on a CPU, in addition to the cases that are small
            enough: a call should take tens of milliseconds.
        peers: name -> sizes at which `svilm bench peers` compares with peers on a CPU.
        compared: the cases that are compared with peers on a GPU.
    """

    tiny: Mapping[str, Any]
    small: Mapping[str, Any]
    large: Mapping[str, Any]
    cpu: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    peers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    compared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Op:
    """Everything that tests and tools need to know about an op.

    Attributes:
        name: the name of the op.
        api: the public function.
        reference: the oracle, with the same arguments (without `backend`).
        cost: `cost(case, dtype) -> OpCost`.
        cases: name -> sizes, including the target shapes.
        make_inputs: `make_inputs(case, dtype, device, seed) -> dict` of keyword arguments of `api`.
        sizes: sizes for gates and benchmarks, in addition to the cases.
        unit: the unit of throughput and the size that counts it, e.g. ("pairs", "batch").
        variants: the specialisations that the static table compiles.
        tiles: kernel -> the work of a tile, from the options of a launch in half precision; for
            the kernels that the static model covers.
        whole: the calls whose whole time the static model predicts, and their parts.
        kernel_paths: the source files that determine the machine code.
        distributed: the op over ranks, with a subset of the arguments of `api`.
        peers: name -> other implementation (see `kernels.peers`).
        gpu_peers: the same for peers that need a GPU.
        gluon: the name of the Gluon kernel that replaces some of its launches on sm_90
            (`backend.gluon_wanted`), or None.
        gluon_backward: the name of the Gluon kernel of its backward pass, or None.
        priority: ops with a lower number are measured first.
    """

    name: str
    api: Callable[..., Any]
    reference: Callable[..., Any]
    cost: Callable[[Mapping[str, Any], torch.dtype], OpCost]
    cases: Mapping[str, Mapping[str, Any]]
    make_inputs: Callable[[Mapping[str, Any], torch.dtype, torch.device | str, int], dict[str, Any]]
    sizes: Sizes
    unit: tuple[str, str]
    variants: tuple[Variant, ...] = ()
    tiles: Mapping[str, Callable[[Mapping[str, Any]], TileWork]] = field(default_factory=dict)
    whole: WholeOp | None = None
    kernel_paths: tuple[Path, ...] = ()
    distributed: Callable[..., torch.Tensor] | None = None
    peers: Mapping[str, Provider] = field(default_factory=dict)
    gpu_peers: Mapping[str, Provider] = field(default_factory=dict)
    gluon: str | None = None
    gluon_backward: str | None = None
    priority: int = 9

    @property
    def has_gluon(self) -> bool:
        """Whether a Gluon kernel replaces launches of the op in any direction."""
        return self.gluon is not None or self.gluon_backward is not None


# The folder of the ops' folders.
KERNELS = Path(__file__).parent
_OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Add an op; an op folder's `__init__.py` calls this once.

    Raises:
        ValueError: the name is taken.
    """
    if op.name in _OPS:
        raise ValueError(f"op {op.name!r} registers twice; give the second one another name")
    _OPS[op.name] = op
    return op


def kernel_sources(folder: Path) -> tuple[Path, ...]:
    """The files that determine the machine code of the op in `folder`."""
    return (
        *sorted((folder / "fused").glob("*.py")),
        KERNELS / "primitives.py",
    )


def ops() -> dict[str, Op]:
    """All ops by name; imports every op folder on the first call."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_OPS.items()))
