"""Starts every Triton kernel, so that launches can be recorded instead of run."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


def power_of_two(value: int, at_least: int = 1) -> int:
    """The smallest power of two >= `value` and >= `at_least`, which is a power of two itself."""
    return max(at_least, 1 << (value - 1).bit_length())


# The start of a strip takes about as long as this many tiles.
START_TILES = 1


@functools.lru_cache(maxsize=64)
def strip_tiles(row_tiles: int, column_tiles: int, sm_count: int, most: int | None = None) -> int:
    """Column tiles per program, at most `most`: the strips fill whole waves of SMs, one on each."""

    def duration(strip: int) -> int:
        strips = -(-column_tiles // strip)
        return -(-row_tiles * strips // sm_count) * (strip + START_TILES)

    lengths = {-(-column_tiles // n) for n in range(1, min(column_tiles, 4 * sm_count) + 1)}
    if most is not None:
        lengths = {length for length in lengths if length <= most} | {min(most, column_tiles)}
    return min(sorted(lengths, reverse=True), key=duration)


@dataclass(frozen=True)
class Launch:
    """The arguments of a recorded launch, sufficient to compile the same specialisation."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    meta: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """All arguments by name, constants and options included."""
        return {**dict(zip(self.kernel.arg_names, self.args)), **self.meta}


@dataclass(frozen=True)
class Product:
    """A recorded product of the library: `parts` sums [rows, columns] of depth `depth`.

    The sums are float32, the factors have `item_bytes` per entry. `first`: the sums are written,
    not added to what is there.
    """

    parts: int
    rows: int
    columns: int
    depth: int
    item_bytes: int
    first: bool


def tensor_bytes(launch: Launch) -> float:
    """Bytes of all tensors of a launch, those behind descriptors included."""
    tensors = (getattr(each, "base", each) for each in launch.args)
    return float(sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor)))


_recording: list[Launch] | None = None
_products: list[Product] | None = None
_compiled: list[Any] | None = None


def descriptor(tensor: torch.Tensor, block: list[int]) -> Any:
    """A TMA descriptor of a contiguous tensor at a multiple of 16 bytes, for blocks of this shape.

    PyTorch gives an axis of size 1 any stride and calls the tensor contiguous; a descriptor needs
    multiples of 16 bytes, so it gets the strides of the dense layout.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.dim())]
    return TensorDescriptor(tensor, list(tensor.shape), strides, block)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Run `kernel[grid](*args, **meta)`, or record it inside `record_launches()`.

    An empty grid starts nothing, because CUDA refuses a grid with a zero. The kernel runs on the
    GPU of its tensors even if another GPU is current.
    """
    if _recording is not None:
        _recording.append(Launch(kernel, grid, args, meta))
    elif all(grid):
        other = _other_device(args)
        if other is None:
            compiled = kernel[grid](*args, **meta)
        else:
            with torch.cuda.device(other):
                compiled = kernel[grid](*args, **meta)
        if _compiled is not None:
            _compiled.append(compiled)


def _other_device(args: tuple[Any, ...]) -> int | None:
    """The GPU of the first CUDA tensor or descriptor, if it is not the current GPU; else None."""
    if not torch.cuda.is_initialized():
        return None
    for arg in args:
        tensor = getattr(arg, "base", arg)
        if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
            index = tensor.get_device()
            return None if index == torch.cuda.current_device() else index
    return None


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Collect launches instead of running them; host code may use `meta` tensors inside."""
    global _recording
    before, _recording = _recording, []
    try:
        yield _recording
    finally:
        _recording = before


def note_product(out: torch.Tensor, left: torch.Tensor, *, first: bool) -> None:
    """Record out [..., m, n] (+)= left [..., m, k] @ [..., k, n] inside `record_products()`."""
    if _products is not None:
        parts = math.prod(out.shape[:-2])
        rows, columns = out.shape[-2:]
        item_bytes = left.dtype.itemsize
        _products.append(Product(parts, rows, columns, left.shape[-1], item_bytes, first))


@contextmanager
def record_products() -> Iterator[list[Product]]:
    """Collect the library's products that host code would start on `meta` tensors."""
    global _products
    before, _products = _products, []
    try:
        yield _products
    finally:
        _products = before


@contextmanager
def compiled_kernels() -> Iterator[list[Any]]:
    """Collect the `triton.compiler.CompiledKernel` of each launch in the block, in order.

    In Triton's interpreter the entries are None, because it does not compile. The list of an outer
    block gets the kernels of an inner one when that ends.
    """
    global _compiled
    before, _compiled = _compiled, []
    found = _compiled
    try:
        yield found
    finally:
        _compiled = before
        if before is not None:
            before.extend(found)
