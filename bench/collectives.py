"""Counts the collectives that reach torch.distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMESPACE = "c10d::"
KINDS = {
    "allgather_base": "all_gather",
    "allgather": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "reduce_scatter_base": "reduce_scatter",
    "reduce_scatter": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "reduce": "reduce",
    "broadcast": "broadcast",
}


class CountedCollectives(TorchDispatchMode):
    """Records every operator of torch.distributed that is called while the mode is on.

    `operators` holds (name, bytes) in the order of the calls. The bytes are those of the larger
    side on this rank: the output of a gather, the input of a reduce-scatter. Backward on a CPU runs
    in the same thread and is recorded; on a GPU it runs in another thread, which no mode reaches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = operator.name().split(".")[0]
        if name.startswith(NAMESPACE):
            size = max((_bytes(value) for value in args), default=0)
            self.operators.append((name.removeprefix(NAMESPACE).strip("_"), size))
        return operator(*args, **(kwargs or {}))

    @property
    def issued(self) -> list[tuple[str, int]]:
        """(kind, bytes) of every collective in order, without other operators."""
        return [(KINDS[name], size) for name, size in self.operators if name in KINDS]

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


def _bytes(value: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
