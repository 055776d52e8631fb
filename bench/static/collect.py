"""Compiles every declared variant of every registered op into rows of the table."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

from svilm_fast.bench.static import calibration
from svilm_fast.bench.static.structure import NOT_MODELLED, Structure, structure_of
from svilm_fast.bench.static.table import KernelRow, row_of
from svilm_fast.bench.static.timeline import Footprint
from svilm_fast.core.messages import check_known
from svilm_fast.kernels.aot import ARCHITECTURES, Compiled, compile_launch
from svilm_fast.kernels.device import assume_traits
from svilm_fast.kernels.launch import Launch, record_launches
from svilm_fast.kernels.registry import TileWork, Variant, ops

MAX_CELLS = 120
_ASK, _ADDR_NO_RANDOMIZE = 0xFFFFFFFF, 0x0040000  # <sys/personality.h>


class _Subject(NamedTuple):
    """What the static table compiles under one name, and the tiles that its model covers."""

    variants: tuple[Variant, ...]
    tiles: Mapping[str, Callable[[Mapping[str, Any]], TileWork]]


def _subjects() -> dict[str, _Subject]:
    """Every registered op, and the calibration kernels."""
    subjects = {name: _Subject(op.variants, op.tiles) for name, op in ops().items()}
    return {**subjects, calibration.NAME: _Subject(calibration.VARIANTS, calibration.TILES)}


def declared(
    op_names: Iterable[str] | None = None, variant: str = ""
) -> list[tuple[str, str, str]]:
    """(op, variant label, target) of every declared variant whose label contains `variant`.

    Raises `ValueError` for an unknown op, for no match, and for more than `MAX_CELLS`.
    """
    subjects = _subjects()
    chosen = list(op_names) if op_names else sorted(subjects)
    check_known("op", chosen, sorted(subjects))
    found = [
        (name, each.label, target)
        for name in chosen
        for each in subjects[name].variants
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
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=fix_addresses
    ) as pool:
        yield from pool.map(_cells_of, tasks)


def fix_addresses() -> None:
    """Start the children of this process at the same addresses every time.

    The machine code that ptxas makes of some kernels depends on the addresses of its data: four
    listings in six runs, with 1,721 to 1,725 issue slots a tile. Warns where the system refuses.
    """
    library = ctypes.CDLL(None)
    if library.personality(library.personality(_ASK) | _ADDR_NO_RANDOMIZE) == -1:
        warnings.warn(
            "the addresses of processes cannot be fixed here, so ptxas may compile a kernel "
            "differently each time; allow the system call personality(ADDR_NO_RANDOMIZE)",
            stacklevel=1,
        )


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
    subject = _subjects()[op]
    variant = next(v for v in subject.variants if v.label == label)
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
        structure = _structure(compiled, launch, subject)
        cells.append(Cell(row_of(op, label, name, compiled, structure), compiled.binary_hash))
    return cells


def _structure(compiled: Compiled, launch: Launch, subject: _Subject) -> Structure:
    """The model of a kernel in half precision (or less) on sm_90; else an empty one."""
    work = subject.tiles.get(compiled.kernel)
    half = compiled.half_precision_dot or "QGMMA" in compiled.tensor_instructions
    if work is None or not half or compiled.architecture != "sm_90":
        return Structure()
    footprint = Footprint(
        compiled.num_warps, compiled.blocks_per_sm, compiled.described_store_bytes
    )
    try:
        return structure_of(compiled.instructions, footprint, work(launch.meta))
    except ValueError as error:
        return Structure(bound=f"{NOT_MODELLED}: {error}")
