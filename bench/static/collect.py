"""Compiles every declared variant of every registered op into rows of the table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from svilm_fast.bench.static.table import KernelRow, row_of
from svilm_fast.core.messages import check_known
from svilm_fast.kernels.aot import ARCHITECTURES, compile_launch
from svilm_fast.kernels.device import assume_traits
from svilm_fast.kernels.launch import record_launches
from svilm_fast.kernels.registry import ops

MAX_CELLS = 120


def declared(
    op_names: Iterable[str] | None = None, variant: str = ""
) -> list[tuple[str, str, str]]:
    """(op, variant label, target) of every declared variant whose label contains `variant`.

    Raises `ValueError` for an unknown op, for no match, and for more than `MAX_CELLS`.
    """
    registered = ops()
    chosen = list(op_names) if op_names else sorted(registered)
    check_known("op", chosen, sorted(registered))
    found = [
        (name, each.label, target)
        for name in chosen
        for each in registered[name].variants
        for target in each.targets
        if variant in each.label
    ]
    if not found:
        raise ValueError(f"no variant of {', '.join(chosen)} is declared with {variant!r}")
    if len(found) > MAX_CELLS:
        raise ValueError(f"{len(found)} (variant, target) declared, the limit is {MAX_CELLS}")
    return found


@dataclass(frozen=True)
class Cell:
    """One compiled kernel: its row, and a hash that is equal for equal binaries."""

    row: KernelRow
    binary_hash: str


def collect(tasks: list[tuple[str, str, str]], *, workers: int = 2) -> Iterator[list[Cell]]:
    """Cells of each (op, variant label, target), in the order of `tasks`."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_cells_of, tasks)


def unique_rows(groups: Iterable[list[Cell]]) -> list[KernelRow]:
    """All rows; a binary that several variants share appears once."""
    rows: dict[str, KernelRow] = {}
    for group in groups:
        for cell in group:
            rows.setdefault(cell.binary_hash, cell.row)
    return list(rows.values())


def _cells_of(task: tuple[str, str, str]) -> list[Cell]:
    op, label, target = task
    architecture = ARCHITECTURES[target]
    variant = next(v for v in ops()[op].variants if v.label == label)
    with assume_traits(architecture.traits), record_launches() as launches:
        variant.run()
    if not launches:
        raise RuntimeError(f"variant {op} | {label} launched no kernel for {target}")
    cells: list[Cell] = []
    hashes: dict[str, set[str]] = {}
    for launch in launches:
        compiled = compile_launch(launch, architecture)
        seen = hashes.setdefault(compiled.kernel, set())
        if compiled.binary_hash in seen:
            continue
        seen.add(compiled.binary_hash)
        name = compiled.kernel if len(seen) == 1 else f"{compiled.kernel}#{len(seen)}"
        cells.append(Cell(row_of(op, label, name, compiled), compiled.binary_hash))
    return cells
