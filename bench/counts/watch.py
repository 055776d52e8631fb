"""Counts collectives, and calls that make the host wait for a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from svilm_fast.bench.collectives import CountedCollectives

# Operators after which the host must know the result's size or value to continue.
WAITING_OPERATORS = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::masked_select",
        "aten::unique_dim",
        "aten::_unique2",
        "aten::unique_consecutive",
        "aten::bincount",
        "aten::repeat_interleave",
        "aten::equal",
        "aten::is_nonzero",
    }
)
# On a CPU tensor these call no operator; on a GPU each of them waits.
WAITING_METHODS = frozenset({"tolist", "cpu", "numpy", "__array__"})


class CallCounter:
    """A context manager that counts.

    `collectives`: operator -> [calls, bytes], as in `CountedCollectives`; `waits`: operator or
    method -> calls.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self._dispatched = _Dispatched(self.waits)
        self._modes = (self._dispatched, _Called(self.waits))

    @property
    def collectives(self) -> dict[str, list[int]]:
        """Calls and bytes by operator."""
        sums: dict[str, list[int]] = {}
        for name, size in self._dispatched.operators:
            calls, total = sums.get(name, (0, 0))
            sums[name] = [calls + 1, total + size]
        return sums

    def __enter__(self) -> CallCounter:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Dispatched(CountedCollectives):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = operator.name().split(".")[0]
        if name in WAITING_OPERATORS:
            self.waits[name] += 1
        elif name in ("aten::index", "aten::index_put_") and _has_mask(args[1]):
            self.waits[f"{name} by mask"] += 1
        return super().__torch_dispatch__(operator, types, args, kwargs)


class _Called(TorchFunctionMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in WAITING_METHODS:
            self.waits[f"Tensor.{name}"] += 1
        return function(*args, **(kwargs or {}))


def _has_mask(indices: Iterable[Tensor | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
