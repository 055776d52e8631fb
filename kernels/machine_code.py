"""Instructions of NVIDIA machine code (SASS), as `cuobjdump -sass` prints them."""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"(?<![\w+])0x([0-9a-f]+)$")


class Instruction(NamedTuple):
    """One instruction; `guard` is its predicate (`@!P0`) or empty."""

    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        """The address to which a branch jumps; None for other instructions."""
        found = _TARGET.search(self.operands) if self.name == "BRA" else None
        return int(found[1], 16) if found else None


def parse(text: str) -> list[Instruction]:
    """Every instruction of a listing, in the order of the addresses."""
    return [Instruction(int(m[1], 16), m[2] or "", m[3], m[4]) for m in _LINE.finditer(text)]
