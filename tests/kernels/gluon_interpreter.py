"""An interpreter of the part of Gluon that the warp-specialised kernels use.

`interpret(launch, seed)` executes the source of a kernel on the CPU, program after program:

- a partition of `warp_specialize` is a thread; one thread runs at a time, and after every operation
  on a barrier or of a copy or product the scheduler may choose another;
- a TMA copy completes at any later moment, in any order with other copies; a TMA store reads its
  buffer later, which `store_wait` waits for, and writes global memory after that; an asynchronous
  product completes later too, in order with the others of its partition, and reads its operands
  then;
- barriers count arrivals and bytes and have phases as an mbarrier does.

The seed determines the schedule, and weights that slow some partitions, copies or products down.

Shared memory is checked independently of the schedule. Every read and write of a buffer is an
event. A partition knows an event if a chain of waits leads from it: a barrier passes on what its
arrivals and copies know; `warpgroup_mma_wait` adds the products and `store_wait` the stores waited
for. An access that conflicts with an event that the partition does not know is a race, even if
nothing went wrong here. So is a product, copy or store of a buffer after a plain write to it, and a
copy after a plain read, without `fence_async_shared` between them, in any partition on the way.
Barriers need no such fence (`kernels/infonce/README.md`).

`GluonFault.kind` is `race` (a missing wait, an overwritten buffer or a missing fence, which
`GluonFault.name` tells apart), `deadlock`, `barrier` (arrivals or bytes that do not match),
`pending` (a result used, or a partition ended, before the end of an asynchronous operation), or
`memory` (out of bounds, or global memory written twice).

Functions of other modules that a kernel calls are executed too, also those of plain Triton kernels;
`tl` is then this interpreter.

Not modelled: threads of a warp and layouts.
"""

from __future__ import annotations

import linecache
import re
import sys
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from svilm_fast.core.philox import uniform4
from svilm_fast.kernels.launch import Launch
from tests.kernels.gluon_global_memory import Descriptor, Pointer
from tests.kernels.gluon_machine import (
    Barrier,
    Copy,
    GluonFault,
    Machine,
    Product,
    Row,
    Slot,
    Store,
    View,
)


def _dense(value: Any) -> Any:
    if isinstance(value, Product):
        value.refuse()
    return value


def _fp32(value: Any) -> Any:
    value = _dense(value)
    return np.asarray(value, np.float32) if np.asarray(value).dtype.kind == "f" else value


def _assigned_name(shape: list[int]) -> str:
    """The variable to which the calling line of the kernel assigns a buffer."""
    frame = sys._getframe(2)
    for line in range(frame.f_lineno, frame.f_lineno - 3, -1):
        found = re.match(r"\s*(\w+) = ", linecache.getline(frame.f_code.co_filename, line))
        if found:
            return found[1]
    return f"buffer {shape}"


class _Language:
    """`gl`, `tma`, `mbarrier` and the products, for one program."""

    static_range = staticmethod(range)
    float16, float32, int64, int32 = np.float16, np.float32, np.int64, np.int32
    SliceLayout = NVMMADistributedLayout = BlockedLayout = staticmethod(lambda *_: None)
    SwizzledSharedLayout = DistributedLinearLayout = staticmethod(lambda *_: None)
    NVMMASharedLayout = SimpleNamespace(get_default_for=lambda *_: None)
    log = staticmethod(np.log)
    PropagateNan = tl.PropagateNan

    def __init__(self, machine: Machine, program: int, programs: int) -> None:
        self._machine, self._program, self._programs = machine, program, programs
        mbarrier = SimpleNamespace(
            MBarrierLayout=lambda: Barrier,
            init=self._init,
            wait=self._wait,
            arrive=self._arrive,
            expect=self._expect,
        )
        self.names = {
            "gl": self,
            "tl": self,
            "mbarrier": mbarrier,
            "tma": SimpleNamespace(
                async_copy_global_to_shared=self._copy,
                async_copy_shared_to_global=self._store,
                store_wait=self._store_wait,
            ),
            "fence_async_shared": machine.fence,
            "warpgroup_mma": self._product,
            "warpgroup_mma_wait": self._product_wait,
        }

    def static_assert(self, condition: bool, message: str) -> None:
        assert condition, message

    def program_id(self, axis: int) -> int:
        assert axis == 0
        return self._program

    def num_programs(self, axis: int) -> int:
        assert axis == 0
        return self._programs

    def cdiv(self, a: int, b: int) -> int:
        return -(-a // b)

    def minimum(self, a: Any, b: Any, propagate_nan: Any = None) -> Any:
        return (np.minimum if propagate_nan == tl.PropagateNan.ALL else np.fmin)(a, b)

    def maximum(self, a: Any, b: Any, propagate_nan: Any = None) -> Any:
        return (np.maximum if propagate_nan == tl.PropagateNan.ALL else np.fmax)(a, b)

    def cast(self, value: Any, dtype: Any, bitcast: bool = False) -> Any:
        return np.asarray(_dense(value)).view(dtype)[()] if bitcast else dtype(_dense(value))

    def arange(self, start: int, stop: int, layout: Any) -> np.ndarray:
        return np.arange(start, stop, dtype=np.int32)

    def zeros(self, shape: list[int], dtype: Any, layout: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return _fp32(np.where(condition, _dense(a), _dense(b)))

    def exp2(self, value: Any) -> Any:
        return np.exp2(_dense(value))

    def fma(self, a: Any, b: Any, c: Any) -> np.ndarray:
        # One rounding: the product of two floats is exact in float64.
        return (np.float64(_dense(a)) * np.float64(b) + np.float64(c)).astype(np.float32)

    def sum(self, value: Any, axis: int) -> np.ndarray:
        return _dense(value).sum(axis, dtype=np.float32)

    def max(self, value: Any, axis: int) -> np.ndarray:
        return _dense(value).max(axis)

    def min(self, value: Any, axis: int) -> np.ndarray:
        return _dense(value).min(axis)

    def permute(self, value: Any, order: tuple[int, ...]) -> np.ndarray:
        return _dense(value).transpose(order)

    def join(self, a: Any, b: Any) -> np.ndarray:
        return np.stack((_dense(a), _dense(b)), -1)

    def split(self, value: Any) -> tuple[np.ndarray, np.ndarray]:
        value = _dense(value)
        return value[..., 0], value[..., 1]

    def rand4x(self, seed: Any, counter: np.ndarray) -> list[np.ndarray]:
        counters = torch.from_numpy(counter.astype(np.int64)).reshape(1, -1)
        numbers = uniform4(torch.tensor([int(seed)]), counters).numpy()
        return list(np.moveaxis(numbers.reshape(*counter.shape, 4), -1, 0))

    def reshape(self, value: Any, shape: list[int]) -> np.ndarray:
        return _dense(value).reshape(shape)

    def convert_layout(self, value: Any, layout: Any, assert_trivial: bool = False) -> Any:
        return _dense(value)

    def load(self, pointer: Pointer, mask: Any = True, other: Any = None) -> Any:
        shape = np.shape(pointer.at)
        if other is None:
            other = np.nan if pointer.data.dtype.kind == "f" else -1
        values = np.full(shape, other, pointer.data.dtype)
        values[np.broadcast_to(mask, shape)] = pointer.data[pointer.places(mask, "a load")]
        return values[()]

    def store(self, pointer: Pointer, value: Any, mask: Any = True) -> None:
        at = pointer.places(mask, "a store")
        if pointer.written[at].any():
            raise GluonFault("memory", f"{pointer.name} is written twice")
        pointer.written[at] = True
        value = np.asarray(_dense(value))
        pointer.data[at] = value[np.broadcast_to(mask, value.shape)]

    def allocate_shared_memory(self, dtype: Any, shape: list[int], layout: Any) -> Any:
        name = _assigned_name(shape)
        if layout is Barrier:
            return Row(name, [Barrier(f"{name}[{at}]") for at in range(shape[0])]).single(shape, 1)
        inner = shape[-2:] if len(shape) > 1 else shape
        number = shape[0] if len(shape) > 2 else 1
        slots = [
            Slot(f"{name}[{at}]" if number > 1 else name, np.full(inner, np.nan, np.float32))
            for at in range(number)
        ]
        return Row(name, [View(self._machine, slot, dtype) for slot in slots]).single(
            shape, len(inner)
        )

    def warp_specialize(self, calls: list[Any], warps: list[int], registers: list[int]) -> None:
        assert len(calls) == len(warps) + 1 == len(registers) + 1
        self._machine.run_partitions(calls)

    def _init(self, barrier: Barrier, count: int) -> None:
        if barrier.count:
            raise GluonFault("barrier", f"{barrier.name} is initialised twice")
        barrier.count = barrier.pending = count

    def _wait(self, barrier: Barrier, phase: int, pred: bool = True) -> None:
        if not pred:
            return
        assert phase in (0, 1)
        here = self._machine.current
        here.pause(lambda: barrier.phase & 1 != phase, f"parity {phase} of {barrier.describe()}")
        here.known |= barrier.released

    def _arrive(self, barrier: Barrier, count: int = 1, pred: bool = True) -> None:
        self._signal(barrier, count, 0, pred)

    def _expect(self, barrier: Barrier, size: int, pred: bool = True) -> None:
        self._signal(barrier, 1, size, pred)

    def _signal(self, barrier: Barrier, count: int, size: int, pred: bool) -> None:
        if pred:
            here = self._machine.current
            here.pause()
            barrier.add(count, size, here.known)

    def _copy(
        self,
        descriptor: Descriptor,
        at: list[int],
        barrier: Barrier,
        target: View,
        pred: bool = True,
    ) -> None:
        if not pred:
            return
        machine = self._machine
        here = machine.current
        here.pause()
        slot, block = target.slot, descriptor.block(*at)
        event = machine.event(f"the copy of {descriptor.name} {[int(x) for x in at]}")
        machine.write(slot, event)
        slot.data[...] = np.nan
        size, known = descriptor.block_type.nbytes, here.known | event.bit
        machine.copies.append(Copy(slot, block, size, barrier, barrier.phase, known))

    def _store(self, descriptor: Descriptor, at: list[int], source: View) -> None:
        machine = self._machine
        here = machine.current
        here.pause()
        event = machine.event(f"the store to {descriptor.name} {[int(x) for x in at]}")
        machine.read(source.slot, event)
        store = Store(event, source.slot, partial(descriptor.write, tuple(at)))
        here.stores.append(store)
        machine.stores.append(store)

    def _store_wait(self, pendings: int) -> None:
        here = self._machine.current
        over = here.stores[: max(len(here.stores) - pendings, 0)]
        here.pause(lambda: all(store.read is not None for store in over), "its own stores")
        here.stores = here.stores[len(over) :]
        for store in over:
            here.known |= store.event.bit

    def _product(
        self, left: View, right: View, start: Any, use_acc: bool = True, is_async: bool = False
    ) -> Any:
        machine = self._machine
        here = machine.current
        here.pause()
        event = machine.event(f"the product of {left.slot.name} and {right.slot.name}")
        machine.read(left.slot, event)
        machine.read(right.slot, event)
        product = Product(event, left, right, start if use_acc else None)
        here.products.append(product)
        machine.log.append((here.title, left.slot.name))
        return product if is_async else self._product_wait(0, (product,))

    def _product_wait(self, outstanding: int, deps: tuple[Any, ...]) -> Any:
        here = self._machine.current
        number = len(here.products) - outstanding
        over, here.products = here.products[:number], here.products[number:]
        here.pending = over
        here.pause(lambda: all(product.value is not None for product in over), "its own products")
        here.pending = []
        for product in over:
            product.retired = True
            here.known |= product.event.bit
        results = [one.value if isinstance(one, Product) and one.retired else one for one in deps]
        return results[0] if len(results) == 1 else tuple(results)


def interpret(launch: Launch, seed: int = 0) -> list[list[tuple[str, str]]]:
    """Execute a launch of a Gluon kernel; returns each program's (partition, product) in order.

    Tensors are on the CPU and are written in place. `num_warps` and `maxnreg` have no effect.
    """
    parameters = launch.kernel.arg_names
    bound: dict[str, Any] = dict(zip(parameters, launch.args))
    bound |= {name: value for name, value in launch.meta.items() if name in parameters}
    rounded = []
    for name, value in bound.items():
        if isinstance(value, torch.Tensor):
            flat = value.detach().reshape(-1)
            # NumPy has no bfloat16.
            data = (flat.float() if value.dtype == torch.bfloat16 else flat).numpy()
            bound[name] = Pointer(name, data, np.zeros(data.size, bool))
            if value.dtype == torch.bfloat16:
                rounded.append((flat, bound[name]))
        elif hasattr(value, "block_shape"):
            bound[name] = Descriptor(name, value)
    logs = []
    for program in range(launch.grid[0]):
        machine = Machine(seed, program)
        _rebound(launch.kernel, _Language(machine, program, launch.grid[0]).names)(**bound)
        logs.append(machine.log)
    for flat, pointer in rounded:
        there = torch.from_numpy(pointer.written)
        flat[there] = torch.from_numpy(pointer.data)[there].bfloat16()
    return logs


def _rebound(kernel: Any, names: dict[str, Any]) -> Any:
    """The function of a kernel with `names`, and its modules' kernels and constants, as globals."""
    modules: dict[int, dict[str, Any]] = {}

    def rebound(function: Any) -> Any:
        known = globals_of(function.__globals__)
        return FunctionType(function.__code__, known, function.__name__, function.__defaults__)

    def globals_of(module: dict[str, Any]) -> dict[str, Any]:
        if id(module) in modules:
            return modules[id(module)]
        known = modules[id(module)] = dict(module)
        for name, value in module.items():
            if isinstance(value, tl.constexpr):
                known[name] = np.float32(value.value) if type(value.value) is float else value.value
            elif isinstance(value, (JITFunction, InterpretedFunction)):
                known[name] = rebound(value.fn)
        known |= {name: value for name, value in names.items() if name in known}
        return known

    return rebound(kernel.fn)
