"""The time of whole ops: the launches of a call on the model's clocks, and the library's products.

Predicted, not measured. The ops describe their calls (`registry.WholeOp`); the host code of each
call runs on `meta` tensors, so its plan, launches and products are those of a real call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from svilm_fast.bench.static import machine
from svilm_fast.bench.static.structure import exposed_share
from svilm_fast.bench.static.table import KernelRow
from svilm_fast.bench.tables import markdown_table
from svilm_fast.kernels.device import H200, assume_traits
from svilm_fast.kernels.launch import Launch, Product, record_launches, record_products
from svilm_fast.kernels.registry import LaunchWork, Op, Target, ops

CASES = machine.Bracket._fields
_COPIES = ("_to_copy", "clone", "copy_")


class _Recorded(NamedTuple):
    """What a call starts: kernels, products of the library, bytes of each copy by PyTorch."""

    launches: list[Launch]
    products: list[Product]
    copies: list[float]


@dataclass(frozen=True)
class WholePrediction:
    """The predicted time of one target, in seconds.

    Attributes:
        parts: the brackets of the parts, in the order of their first launch.
        floor: the floor of the op's README.
        kernels, products: number of launches of each kind.
    """

    target: str
    parts: Mapping[str, machine.Bracket]
    floor: float
    kernels: int
    products: int

    @cached_property
    def total(self) -> machine.Bracket:
        """The sum of the parts."""
        return machine.Bracket(*map(sum, zip(*self.parts.values(), strict=True)))

    @property
    def floor_share(self) -> machine.Bracket:
        """Share of the floor."""
        return machine.Bracket(*(self.floor / each for each in self.total))


def predict(op: Op, target: Target, rows: Iterable[KernelRow]) -> WholePrediction:
    """The time of `target`, from the rows of the static table.

    Raises:
        LookupError: a kernel has no row with clocks.
        ValueError: the op does not describe a kernel that the call starts.
    """
    assert op.whole is not None
    recorded = _record(target)
    clocks = {(row.variant, row.kernel): row for row in rows if row.op == op.name and row.clocks}
    parts: dict[str, list[float]] = {}

    def add(part: str, seconds: Sequence[float]) -> None:
        before = parts.get(part, [0.0] * len(CASES))
        parts[part] = [a + b for a, b in zip(before, seconds, strict=True)]

    for launch in recorded.launches:
        name = launch.kernel.__name__
        describe = op.whole.launches.get(name)
        if describe is None:
            raise ValueError(
                f"{op.name}: {target.label!r} starts {name}, which `whole.launches` does not "
                "describe; add it there"
            )
        work = describe(launch)
        row = None
        if work.tiles:
            key = target.variants.get(name, ""), work.row or name
            row = clocks.get(key)
            if row is None:
                raise LookupError(f"no clocks of {op.name} | {' | '.join(key)} in the static table")
        add(work.part, [_launch_seconds(launch, work, row, case) for case in CASES])
    for product in recorded.products:
        add(op.whole.product(product), [_product_seconds(product, case) for case in CASES])
    for size in recorded.copies:
        add(op.whole.copies, [_pass_seconds(size, case) for case in CASES])
    return WholePrediction(
        target.label,
        {part: machine.Bracket(*seconds) for part, seconds in parts.items()},
        _floor_seconds(op, target),
        len(recorded.launches),
        len(recorded.products),
    )


def predictions(rows: Sequence[KernelRow]) -> dict[str, list[WholePrediction]]:
    """By op, the targets of which `rows` hold all kernels."""
    found: dict[str, list[WholePrediction]] = {}
    modelled = {row.op for row in rows if row.clocks}
    for name, op in ops().items():
        for target in op.whole.targets if op.whole and name in modelled else ():
            try:
                found.setdefault(name, []).append(predict(op, target, rows))
            except LookupError:
                continue
    return {name: each for name, each in found.items() if each}


def whole_lines(found: Sequence[WholePrediction]) -> list[str]:
    """The predictions of one op as a Markdown table, in milliseconds."""
    parts = list(dict.fromkeys(part for each in found for part in each.parts))
    numbers = ("launches", *parts, "sum", "share of the floor")
    cells = (
        (
            each.target,
            f"{each.kernels} + {each.products}",
            *(_milliseconds(each.parts[part]) if part in each.parts else "" for part in parts),
            f"{_milliseconds(each.total)} ms",
            "/".join(f"{100 * share:.0f}" for share in each.floor_share) + " %",
        )
        for each in found
    )
    return markdown_table(("call", *numbers), cells, right=numbers)


def _record(target: Target) -> _Recorded:
    with (
        assume_traits(H200),
        record_launches() as launches,
        record_products() as products,
        _Copies() as copies,
    ):
        target.run()
    return _Recorded(launches, products, copies.sizes)


class _Copies(TorchDispatchMode):
    """Notes the bytes that each copy by PyTorch reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[float] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _COPIES:
            source = args[1] if func.overloadpacket.__name__ == "copy_" else args[0]
            self.sizes.append(float(source.nbytes + result.nbytes))
        return result


def _launch_seconds(launch: Launch, work: LaunchWork, row: KernelRow | None, case: str) -> float:
    if row is None:
        return _pass_seconds(work.memory_bytes, case)
    tile = float(row.clocks.split("/")[CASES.index(case)])
    programs = math.ceil(math.prod(launch.grid) / machine.SMS)
    # A program that loops over tiles starts cold; one that is a tile has this in its clocks, and
    # one whose warps have roles has its share in those of every tile.
    cold = _of(machine.BLOCK_START_CLOCKS, case) + _of(machine.TMA_CLOCKS, case)
    cold *= exposed_share(row.blocks_per_sm, case) * (work.tiles > 1 and not row.roles)
    clocks = programs * (work.tiles * tile + cold)
    return clocks / _of(machine.CLOCK_HZ, case) + _of(machine.LAUNCH_SECONDS, case)


def _pass_seconds(size: float, case: str) -> float:
    return size / _of(machine.DRAM_RATE, case) + _of(machine.LAUNCH_SECONDS, case)


def _product_seconds(product: Product, case: str) -> float:
    """Waves of tiles, or the bytes of the factors; then the sums, which nothing overlaps."""
    rate = _of(machine.LIBRARY_FLOPS, case) / machine.SMS

    def waves(height: int, width: int, share: float) -> float:
        tiles = math.ceil(product.rows / height) * math.ceil(product.columns / width)
        number = math.ceil(product.parts * tiles / machine.SMS)
        return number * 2.0 * height * width * product.depth / (share * rate)

    multiplied = min(waves(*tile, share) for tile, share in machine.LIBRARY_TILES.items())
    memory = _of(machine.DRAM_RATE, case)
    factors = product.parts * product.depth * (product.rows + product.columns) * product.item_bytes
    sums = 4.0 * product.parts * product.rows * product.columns * (1 if product.first else 2)
    return max(multiplied, factors / memory) + sums / memory + _of(machine.LAUNCH_SECONDS, case)


def _floor_seconds(op: Op, target: Target) -> float:
    cost = op.cost(target.sizes, torch.bfloat16)
    flops = {"forward": cost.forward_flops, "backward": cost.backward_flops}
    sizes = {"forward": cost.forward_bytes, "backward": cost.backward_bytes}
    return sum(
        max(flops[each] / machine.FLOOR_FLOPS, sizes[each] / machine.FLOOR_DRAM_RATE)
        for each in target.passes
    )


def _of(bracket: machine.Bracket, case: str) -> float:
    return float(getattr(bracket, case))


def _milliseconds(bracket: machine.Bracket) -> str:
    return "/".join(f"{1e3 * each:.2f}" for each in bracket)
