"""Counts collectives and what makes the host wait for a device, while code runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result's size or value the host must know before it goes on.
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
# On a CPU tensor these copy nothing and reach no operator; on a GPU each of them waits.
WAITING_METHODS = frozenset({"tolist", "cpu", "numpy", "__array__"})


class Watch:
    """`collectives`: kind -> [calls, bytes]; `waits`: operator or method -> calls.

    The bytes of a collective are those of its larger side on this rank: what a gather gives, what
    a reduce-scatter takes. Backward on CPU runs in the same thread and is seen as well; on a GPU it
    has a thread of its own, which these modes do not reach.
    """

    def __init__(self) -> None:
        self.collectives: dict[str, list[int]] = {}
        self.waits: Counter[str] = Counter()
        self._modes = (_Dispatched(self), _Called(self))

    def __enter__(self) -> Watch:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Dispatched(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = operator.name().split(".")[0]
        if name.startswith("c10d::"):
            seen = self.watch.collectives.setdefault(name.removeprefix("c10d::").strip("_"), [0, 0])
            seen[0] += 1
            seen[1] += max((_bytes(value) for value in args), default=0)
        elif name in WAITING_OPERATORS:
            self.watch.waits[name] += 1
        elif name in ("aten::index", "aten::index_put_") and _has_mask(args[1]):
            self.watch.waits[f"{name} by mask"] += 1
        return operator(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in WAITING_METHODS:
            self.watch.waits[f"Tensor.{name}"] += 1
        return function(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def _has_mask(indices: Iterable[Tensor | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
