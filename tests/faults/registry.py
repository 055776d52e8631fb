"""The table of faults: what is injected, how often, and what a try must show to survive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.rig import Rig


class MissedError(AssertionError):
    """A try did not show what it should."""


def need(condition: object, text: str) -> None:
    """Raise MissedError with `text` unless the condition holds."""
    if not condition:
        raise MissedError(text)


@dataclass
class Tries:
    """The tries of one row: how many were made, how many survived, and why the others did not."""

    made: int = 0
    survived: int = 0
    missed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def one(self, label: str) -> Iterator[None]:
        """Count one try; an exception inside makes it a missed one and is recorded."""
        self.made += 1
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, MissedError) else f"{type(error).__name__}: "
            self.missed.append(f"{label}: {kind}{error}")
        else:
            self.survived += 1


Perform = Callable[["Rig", int, Tries], None]


@dataclass(frozen=True)
class Row:
    """A row of the table. tries, short: number of tries in the full and in the short form."""

    number: int
    fault: str
    target: str
    tries: int
    short: int
    perform: Perform


ROWS: dict[int, Row] = {}


def row(
    number: int, fault: str, target: str, *, tries: int, short: int
) -> Callable[[Perform], Perform]:
    """Register a function as the one that performs a row."""

    def register(perform: Perform) -> Perform:
        if number in ROWS:
            raise ValueError(f"row {number} is registered twice")
        ROWS[number] = Row(number, fault, target, tries, short, perform)
        return perform

    return register
