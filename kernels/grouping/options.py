"""The options of a grouping call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Mode = Literal["gumbel", "hard", "soft"]
MODES = ("gumbel", "hard", "soft")


@dataclass(frozen=True)
class GroupingOptions:
    """The arguments of `api.grouping` with the same names."""

    seeds: Tensor | None = None
    token_ids: Tensor | None = None
    token_mask: Tensor | None = None
    mode: Mode = "gumbel"
    temperature: float = 1.0
    eps: float = 1.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are not None, by name."""
        named = {"seeds": self.seeds, "token_ids": self.token_ids, "token_mask": self.token_mask}
        return {name: value for name, value in named.items() if value is not None}

    def of_samples(self, samples: slice) -> GroupingOptions:
        """The options for a slice of the samples."""
        part = {name: value[samples] for name, value in self.tensors.items()}
        tensors = (part.get("seeds"), part.get("token_ids"), part.get("token_mask"))
        return GroupingOptions(*tensors, self.mode, self.temperature, self.eps)

    def packed(self) -> tuple[Any, ...]:
        """The options as arguments of an operator; `GroupingOptions(*packed)` is the inverse."""
        tensors = (self.seeds, self.token_ids, self.token_mask)
        return (*tensors, self.mode, self.temperature, self.eps)
