"""Weights that fit a model only in part: which are new, missing or of another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from svilm_fast.core.errors import CheckpointError
from svilm_fast.tasks.base import InitialWeights

SHOWN = 3

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class WeightsReport:
    """The result of loading weights into a model, as names of parameters and buffers.

    taken: loaded. new: only in the model. missing: only in the weights. reshaped: in both, with
    different shapes. New and reshaped ones keep their initial values.
    """

    taken: tuple[str, ...]
    new: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether weights and model have the same names and shapes."""
        return not (self.new or self.missing or self.reshaped)

    def lines(self, source: Path) -> list[str]:
        """Return the report as lines of text; empty if everything fits."""
        if self.whole:
            return []
        total = len(self.taken) + len(self.new) + len(self.reshaped)
        lines = [f"weights of {source}: {len(self.taken)} of the model's {total} tensors taken"]
        for names, what in (
            (self.new, "new, they keep their initial values"),
            (self.reshaped, "of another shape, they keep their initial values"),
            (self.missing, "in the weights alone, left out"),
        ):
            if names:
                lines.append(f"  {what}: {listed(names)}")
        return lines


def listed(names: Sequence[str]) -> str:
    """Return the count and the first names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{more})"


def compare_weights(
    saved: Shapes, model: Shapes, allowed: InitialWeights, source: Path
) -> WeightsReport:
    """Compare the shapes of saved weights with those of a model.

    Raises CheckpointError with the count and the first names of what `allowed` does not allow.
    """
    new = tuple(name for name in model if name not in saved)
    missing = tuple(name for name in saved if name not in model)
    shared = [name for name in model if name in saved]
    reshaped = tuple(name for name in shared if list(saved[name]) != list(model[name]))
    problems = []
    for names, what in (
        ([name for name in new if not allowed.allows_new(name)], "not in the weights"),
        ([name for name in missing if not allowed.allows_missing(name)], "not in the model"),
        (
            [
                f"{name} {list(saved[name])}, in the model {list(model[name])}"
                for name in reshaped
                if not allowed.allows_new(name)
            ],
            "of another shape",
        ),
    ):
        if names:
            problems.append(f"{what}: {listed(names)}")
    if problems:
        raise CheckpointError(
            f"the weights of {source} do not fit the model; {'; '.join(problems)}. Use the "
            "configuration that they were trained with, or a task whose initial_weights() allows it"
        )
    return WeightsReport(
        taken=tuple(name for name in shared if name not in reshaped),
        new=new,
        missing=missing,
        reshaped=reshaped,
    )
