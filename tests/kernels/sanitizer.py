"""A memory sanitizer for kernels that run in Triton's interpreter.

Inside `Sanitizer(seed)` every load, store and atomic of every launch is checked:

- bounds: the address lies in the tensor argument that its pointer was made from, and is aligned;
- races: no byte that one program writes is read or written by another program of the same launch,
  unless both accesses are atomic, and no two lanes of one store write different values to one byte;
- uninitialised reads: memory from `torch.empty`, `empty_like` or `new_empty` is not read before it
  is written.

The programs of a launch run in a random order that the seed determines. A launch with a fault
raises `KernelFault`, which names the kernel, the program, the argument and the offset.

The interpreter gets fake addresses whose upper bits hold the number of the argument, so every
pointer identifies its argument. Each access translates them to real addresses.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

# Bits below the argument's number: an offset may be up to 2^43 bytes in either direction.
_BITS = 44
_HALF = 1 << (_BITS - 1)
# Fake addresses keep the offset within a page, and so the alignment.
_PAGE = 4096
# Every byte of fresh memory; large and negative as a float and as an integer.
POISON = 0xFB
_NOBODY, _SEVERAL = -1, -2
_MOST_REPORTED = 8


class KernelFault(AssertionError):
    """The fault of a launch; `kind` is `bounds`, `race` or `uninitialised`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class _Argument:
    """A tensor argument of a launch."""

    name: str
    tensor: Tensor
    fake: int
    real: int
    shadow: _Shadow
    start: int  # byte of the storage where the tensor begins
    bytes: int  # from the tensor's first to its last byte
    reach: np.ndarray | None  # for a tensor with gaps: True where it has an element

    def describe(self) -> str:
        kind = str(self.tensor.dtype).removeprefix("torch.")
        return f"{self.name!r} ({kind} {list(self.tensor.shape)})"


class _Shadow:
    """The programs that accessed each byte of a storage in one launch, and the unwritten bytes."""

    def __init__(self, size: int, fresh: np.ndarray | None) -> None:
        self.writer = np.full(size, _NOBODY, np.int32)
        self.reader = np.full(size, _NOBODY, np.int32)
        self.atomic = np.zeros(size, bool)
        self.unwritten = fresh


class Sanitizer:
    """Checks all launches of the interpreter inside its `with` block; see the module docstring."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._restore: list[tuple[Any, str, Any]] = []
        # References keep the tensors alive, so that no other tensor gets their addresses.
        self._fresh: dict[int, tuple[Tensor, np.ndarray]] = {}
        self._arguments: list[_Argument] = []
        self._shadows: dict[int, _Shadow] = {}
        self._faults: list[KernelFault] = []
        self._names: list[str] | None = None
        self._order = np.zeros(1, np.int64)
        self._kernel = ""
        self.launches = 0

    def __enter__(self) -> Sanitizer:
        for holder, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            self._patch(holder, name, self._poisoned(getattr(holder, name)))
        self._patch(interpreter, "_implicit_cvt", self._converter(interpreter._implicit_cvt))
        self._patch(GridExecutor, "__call__", self._launcher(GridExecutor.__call__))
        builder = InterpreterBuilder
        self._patch(builder, "set_grid_idx", self._mover(builder.set_grid_idx))
        self._patch(builder, "create_masked_load", self._loader(builder.create_masked_load))
        self._patch(builder, "create_masked_store", self._storer(builder.create_masked_store))
        self._patch(builder, "create_atomic_rmw", self._atomic(builder.create_atomic_rmw, 3))
        self._patch(builder, "create_atomic_cas", self._atomic(builder.create_atomic_cas, None))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for holder, name, original in reversed(self._restore):
            setattr(holder, name, original)
        self._restore.clear()
        self._fresh.clear()

    def _patch(self, holder: Any, name: str, value: Any) -> None:
        self._restore.append((holder, name, getattr(holder, name)))
        setattr(holder, name, value)

    def _poisoned(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def fresh(*args: Any, **settings: Any) -> Tensor:
            made = make(*args, **settings)
            if type(made) is Tensor and made.layout == torch.strided and made.device.type == "cpu":
                storage = made.untyped_storage()
                if storage.nbytes() and storage.data_ptr() not in self._fresh:
                    storage.fill_(POISON)
                    unwritten = np.ones(storage.nbytes(), bool)
                    self._fresh[storage.data_ptr()] = (made.detach(), unwritten)
            return made

        return fresh

    def unwritten(self, tensor: Tensor) -> int:
        """Number of elements of a dense tensor that were never written."""
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        # Bytes equal to POISON that a kernel wrote are a value.
        left = (raw.reshape(-1, tensor.element_size()) == POISON).all(1)
        known = self._fresh.get(tensor.untyped_storage().data_ptr())
        if known is not None and tensor.is_contiguous():
            start = tensor.storage_offset() * tensor.element_size()
            marks = known[1][start : start + raw.size]
            left &= marks.reshape(-1, tensor.element_size()).all(1)
        return int(left.sum())

    def _launcher(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def launch(executor: GridExecutor, *args: Any, **settings: Any) -> Any:
            known = inspect.getfullargspec(executor.fn).args
            bound = inspect.getcallargs(
                executor.fn, *args, **{k: v for k, v in settings.items() if k in known}
            )
            self._kernel = executor.fn.__name__
            self._names = [name for name in bound if name not in executor.constexprs]
            self._arguments, self._shadows, self._faults = [], {}, []
            self._order = np.zeros(0, np.int64)
            self.launches += 1
            result = call(executor, *args, **settings)
            if self._faults:
                raise self._faults[0]
            return result

        return launch

    def _converter(self, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
        depth = 0

        def converted(value: Any) -> Any:
            nonlocal depth
            if depth == 0 and self._names:
                self._name = self._names.pop(0)
            depth += 1
            try:
                result = convert(value)
            finally:
                depth -= 1
            if hasattr(value, "data_ptr"):
                result.handle.data = np.array([self._register(value)], dtype=np.uint64)
            return result

        return converted

    def _register(self, tensor: Any) -> int:
        """Record an argument and return the fake address of its first element."""
        tensor = getattr(tensor, "base", None) if not isinstance(tensor, Tensor) else tensor
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in self._shadows:
            known = self._fresh.get(place)
            self._shadows[place] = _Shadow(storage.nbytes(), known[1] if known else None)
        size = tensor.element_size()
        extent = sum((n - 1) * abs(s) for n, s in zip(tensor.shape, tensor.stride())) + 1
        reach = None
        if not tensor.numel():
            extent = 0
        elif extent != tensor.numel():
            reach = np.zeros(extent, bool)
            at = np.zeros((1,) * tensor.dim(), np.int64)
            for axis, (n, stride) in enumerate(zip(tensor.shape, tensor.stride())):
                lay = [1] * tensor.dim()
                lay[axis] = n
                at = at + (np.arange(n) * stride).reshape(lay)
            reach[at.reshape(-1)] = True
        real = tensor.data_ptr()
        fake = ((len(self._arguments) + 1) << _BITS) + _HALF + real % _PAGE
        start = tensor.storage_offset() * size
        self._arguments.append(
            _Argument(
                self._name, tensor, fake, real, self._shadows[place], start, extent * size, reach
            )
        )
        return fake

    def _mover(self, move: Callable[..., Any]) -> Callable[..., Any]:
        def moved(builder: InterpreterBuilder, x: int, y: int, z: int) -> None:
            grid = builder.grid_dim
            total = grid[0] * grid[1] * grid[2]
            if len(self._order) != total:
                self._order = self._random.permutation(total)
            self._program = int(self._order[(x * grid[1] + y) * grid[2] + z])
            rest, z = divmod(self._program, grid[2])
            self._place = (rest // grid[1], rest % grid[1], z)
            move(builder, *self._place)

        return moved

    def _loader(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def checked(
            builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **more: Any
        ) -> Any:
            real, allowed, _ = self._access(pointers, mask, "load")
            return load(builder, real, allowed, other, *rest, **more)

        return checked

    def _storer(self, store: Callable[..., Any]) -> Callable[..., Any]:
        def checked(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            real, allowed, places = self._access(pointers, mask, "store")
            if places is not None and len(places) > 1:
                self._check_lanes(places, value, allowed, pointers)
            return store(builder, real, value, allowed, *rest)

        return checked

    def _atomic(self, act: Callable[..., Any], mask_at: int | None) -> Callable[..., Any]:
        def checked(builder: Any, *args: Any) -> Any:
            arguments = list(args)
            pointer_at = 0 if mask_at is None else 1
            pointers = arguments[pointer_at]
            if mask_at is None:
                mask = TensorHandle(np.ones_like(pointers.data, dtype=bool), tl.int1)
            else:
                mask = arguments[mask_at]
            real, allowed, _ = self._access(pointers, mask, "atomic")
            arguments[pointer_at] = real
            if mask_at is not None:
                arguments[mask_at] = allowed
            elif not allowed.data.all():
                return arguments[1]  # out of bounds: nothing is exchanged
            return act(builder, *arguments)

        return checked

    def _access(
        self, pointers: TensorHandle, mask: Any, what: str
    ) -> tuple[TensorHandle, TensorHandle, np.ndarray | None]:
        """Real pointers, the mask without faulty lanes, and the accessed bytes of the storage."""
        # The mask of descriptors and block pointers is a plain array, whose `data` is a buffer.
        active = np.broadcast_to(np.asarray(mask.data, dtype=bool), pointers.data.shape)
        mask = TensorHandle(active, tl.int1)
        if not active.any():
            return pointers, mask, None
        addresses = pointers.data[active]
        number = int(addresses[0] >> np.uint64(_BITS)) - 1
        if not 0 <= number < len(self._arguments):
            self._fault("bounds", what, None, int(addresses[0]), "it comes from no argument")
            return pointers, TensorHandle(np.zeros_like(active), tl.int1), None
        argument = self._arguments[number]
        size = pointers.get_element_ty().primitive_bitwidth // 8 or 1
        offset = addresses.view(np.int64) - argument.fake
        good = (offset >= 0) & (offset + size <= argument.bytes)
        unit = argument.tensor.element_size()
        if argument.reach is not None:
            good[good] = argument.reach[offset[good] // unit]
        if not good.all():
            count = int((~good).sum())
            outside = int(offset[~good][0])
            self._fault("bounds", what, argument, outside, f"outside the tensor, {count} elements")
            narrowed = np.array(active)
            narrowed[active] = good
            active, offset = narrowed, offset[good]
            mask = TensorHandle(active, tl.int1)
        if (offset % size).any():
            crooked = int(offset[offset % size != 0][0])
            self._fault("bounds", what, argument, crooked, f"not aligned to {size} bytes")
        places = offset + argument.start
        if size > 1:
            places = (places[:, None] + np.arange(size)).reshape(-1)
        if len(places):
            self._mark(argument, places, size, what)
        moved = pointers.data - np.uint64(argument.fake) + np.uint64(argument.real)
        return TensorHandle(moved, pointers.dtype), mask, places

    def _mark(self, argument: _Argument, places: np.ndarray, size: int, what: str) -> None:
        shadow, me = argument.shadow, self._program
        writer = shadow.writer[places]
        foreign = (writer != _NOBODY) & (writer != me)
        if what == "atomic":
            foreign &= ~shadow.atomic[places]
        if foreign.any():
            self._race(argument, places, foreign, what, "wrote", writer)
        if what == "load":
            reader = shadow.reader[places]
            shadow.reader[places] = np.where((reader == _NOBODY) | (reader == me), me, _SEVERAL)
            self._check_written(argument, places, size)
            return
        reader = shadow.reader[places]
        foreign = (reader != _NOBODY) & (reader != me)
        if foreign.any():
            self._race(argument, places, foreign, what, "read", reader)
        if what == "atomic":
            self._check_written(argument, places, size)
            shadow.atomic[places] = (writer == _NOBODY) | shadow.atomic[places]
        else:
            shadow.atomic[places] = False
        shadow.writer[places] = me
        if shadow.unwritten is not None:
            shadow.unwritten[places] = False

    def _check_written(self, argument: _Argument, places: np.ndarray, size: int) -> None:
        if argument.shadow.unwritten is None:
            return
        elements = places.reshape(-1, size)
        elements = elements[argument.shadow.unwritten[elements].all(1)] - argument.start
        if not len(elements):
            return
        # A write by PyTorch is not marked, but changes the bytes.
        memory = (ctypes.c_uint8 * argument.bytes).from_address(argument.real)
        left = elements[(np.frombuffer(memory, np.uint8)[elements] == POISON).all(1)]
        if len(left):
            reason = f"nothing was written there, {len(left)} elements"
            self._fault("uninitialised", "load", argument, int(left[0, 0]), reason)

    def _check_lanes(
        self, places: np.ndarray, value: TensorHandle, allowed: TensorHandle, pointers: TensorHandle
    ) -> None:
        """Report two lanes of one store that write different values to one address."""
        size = pointers.get_element_ty().primitive_bitwidth // 8 or 1
        lanes = places[::size]
        if len(np.unique(lanes)) == len(lanes):
            return
        active = np.broadcast_to(allowed.data, pointers.data.shape)
        values = np.broadcast_to(value.data, pointers.data.shape)[active]
        order = np.argsort(lanes, kind="stable")
        lanes, values = lanes[order], values[order]
        twice = (lanes[1:] == lanes[:-1]) & (values[1:] != values[:-1])
        if twice.any():
            number = int(pointers.data[active][0] >> np.uint64(_BITS)) - 1
            argument = self._arguments[number]
            at = int(lanes[1:][twice][0]) - argument.start
            self._fault("race", "store", argument, at, "two lanes write different values there")

    def _race(
        self,
        argument: _Argument,
        places: np.ndarray,
        foreign: np.ndarray,
        what: str,
        did: str,
        who: np.ndarray,
    ) -> None:
        at = int(places[foreign][0]) - argument.start
        other = int(who[foreign][0])
        name = "several programs" if other == _SEVERAL else f"program {self._place_of(other)}"
        self._fault("race", what, argument, at, f"{name} {did} it in the same launch")

    def _place_of(self, program: int) -> tuple[int, int, int]:
        grid = interpreter.interpreter_builder.grid_dim
        rest, z = divmod(program, grid[2])
        return rest // grid[1], rest % grid[1], z

    def _fault(
        self, kind: str, what: str, argument: _Argument | None, at: int, reason: str
    ) -> None:
        if len(self._faults) >= _MOST_REPORTED:
            return
        where = f"address {at:#x}"
        if argument is not None:
            element = at // argument.tensor.element_size()
            where = f"argument {argument.describe()}, element offset {element} (byte {at})"
        who = f"kernel {self._kernel}, program {self._place}"
        self._faults.append(KernelFault(kind, f"{kind}: {who}, {what} of {where}: {reason}"))
