"""What was done with the weights of a tower, as lines of text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from svilm_fast.models.pretrained.families import Tower, listed


@dataclass
class TowerReport:
    """The result of loading one tower's weights, as names of its tensors.

    taken: tensors that were filled. changed: how some of them were made (inflated, interpolated,
    folded). new: tensors that keep their initial values. left_out: keys of the weights that no
    embedding needs. notes: what the weights do not tell, and what a still clip gives.
    """

    tower: Tower
    family: str
    source: Path
    taken: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        total = len(self.taken) + len(self.new)
        lines = [
            f"weights.{self.tower}: {self.source} ({self.family}): {len(self.taken)} of the "
            f"tower's {total} tensors loaded"
        ]
        lines += [f"  {line}" for line in self.changed]
        for names, what in (
            (_parts(self.new), "new, with initial values"),
            (_parts(self.left_out), "in the weights, left out"),
        ):
            if names:
                lines.append(f"  {what}: {listed(names)}")
        return lines + [f"  {line}" for line in self.notes]


def _parts(names: list[str]) -> list[str]:
    """Return the modules of tensors, once each, as in `projection (2 tensors)`."""
    counts: dict[str, int] = {}
    for name in names:
        head = name.partition(".")[0] if name.count(".") > 1 else name.rpartition(".")[0] or name
        counts[head] = counts.get(head, 0) + 1
    return [f"{name} ({count})" if count > 1 else name for name, count in counts.items()]
