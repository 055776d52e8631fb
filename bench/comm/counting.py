"""Counts what torch.distributed is really given."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operator -> kind, and the argument that is the whole tensor: gathered, before a scatter, reduced.
_OPERATORS = {
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "reduce_": ("reduce", 0),
    "broadcast_": ("broadcast", 0),
}


class CountedCollectives(TorchDispatchMode):
    """Every collective issued while the mode is on, as (kind, bytes of the whole tensor)."""

    def __init__(self) -> None:
        super().__init__()
        self.issued: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "c10d" and name in _OPERATORS:
            kind, position = _OPERATORS[name]
            tensors = [leaf for leaf in tree_leaves(args[position]) if isinstance(leaf, Tensor)]
            self.issued.append((kind, sum(tensor.nbytes for tensor in tensors)))
        return function(*args, **(kwargs or {}))

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes by kind."""
        sums: Counter[str] = Counter()
        for kind, size in self.issued:
            sums[kind] += size
        return dict(sums)

    @property
    def calls(self) -> dict[str, int]:
        """Calls by kind."""
        return dict(Counter(kind for kind, _ in self.issued))
