"""Counting of skipped samples, with a budget: data that silently shrinks is worse than an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from svilm_fast.core.messages import single_line
from svilm_fast.core.terminal import printable
from svilm_fast.core.text import counted
from svilm_fast.data.errors import DataError, SkipBudgetError
from svilm_fast.data.text import storable


@dataclass(frozen=True)
class Skip:
    """One sample that was left out, and why."""

    sample: str
    reason: str
    message: str

    @classmethod
    def of(cls, sample: str, error: DataError) -> Skip:
        return cls(storable(sample), error.reason, storable(single_line(error)))


def refused_lines(refused: Sequence[Skip], file: str, examples: int = 20) -> list[str]:
    """Counts by reason and the first refused samples, as text; `file` lists all of them."""
    counts = Counter(skip.reason for skip in refused)
    lines = [f"  {count} x {reason}" for reason, count in counts.most_common()]
    lines += [
        f"  refused {printable(skip.sample, lines=False)}: {skip.message}"
        for skip in refused[:examples]
    ]
    if len(refused) > examples:
        lines.append(f"  ... and {len(refused) - examples} more in {file}")
    return lines


def nothing_left(source: str, what: str, refused: Sequence[Skip]) -> DataError:
    """The error of work on `source` that has refused all samples, with the first reason."""
    example = f"; {refused[0].sample}: {refused[0].message}" if refused else ""
    return DataError(f"{source!r}: {what}{example}")


@dataclass
class SkipReport:
    """Skipped samples per reason. A sample counts once, however often an epoch meets it.

    `notes` counts what was mended and kept: short clips with repeated frames, cut captions.
    """

    seen: int = 0
    skipped: dict[str, Skip] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, skip: Skip) -> None:
        self.skipped.setdefault(skip.sample, skip)

    def counts(self) -> dict[str, int]:
        """Samples per reason, most frequent first."""
        return dict(Counter(skip.reason for skip in self.skipped.values()).most_common())

    def check_budget(self, fraction: float, always_allowed: int) -> None:
        """Raise SkipBudgetError when more than `fraction` of the samples seen were skipped."""
        allowed = max(always_allowed, int(fraction * self.seen))
        if len(self.skipped) <= allowed:
            return
        example = next(iter(self.skipped.values()))
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.counts().items())
        raise SkipBudgetError(
            f"{len(self.skipped)} of {counted(self.seen, 'sample')} skipped ({reasons}; for "
            "example "
            f"{example.sample}: {example.message}), more than the {allowed} allowed: fix the data "
            "(`svilm data pack` lists what is wrong) or raise data.skips.fraction"
        )

    def summary(self) -> str:
        """One line for a log."""
        parts = [f"{count} x {reason}" for reason, count in self.counts().items()]
        notes = [f"{count} x {note}" for note, count in sorted(self.notes.items())]
        text = f"skipped {len(self.skipped)} of {counted(self.seen, 'sample')}"
        if parts:
            text += f" ({', '.join(parts)})"
        return text + (f"; {', '.join(notes)}" if notes else "")

    def state_dict(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "skipped": [[s.sample, s.reason, s.message] for s in self.skipped.values()],
            "notes": dict(self.notes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = int(state["seen"])
        self.skipped = {row[0]: Skip(*row) for row in state["skipped"]}
        self.notes = Counter(state["notes"])
