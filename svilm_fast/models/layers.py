"""The place of a parameter in its tower, from its name: embedding, layer or head."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

TOWER = re.compile(r"(?:^|\.)encoder\.(video|text)\.(.+)$")
NUMBERED = re.compile(r"^(blocks|grouping_blocks)\.(\d+)\.")
EMBEDDINGS = ("embedding", "groups", "class_token", "pre_norm")
HEADS = ("norm", "projection", "group_norm", "group_projection")


@dataclass(frozen=True, order=True)
class TowerLevel:
    """A level of a tower: 0 the embedding, 1 to `depth` the layers, `depth + 1` the head.

    A grouping block stands on the level of the layer that it follows.
    """

    tower: str
    level: int
    depth: int

    @property
    def label(self) -> str:
        """Such as `video.layer_03`."""
        if self.level == 0:
            return f"{self.tower}.embedding"
        if self.level > self.depth:
            return f"{self.tower}.head"
        return f"{self.tower}.layer_{self.level:02d}"


def tower_depths(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of each tower that has parameters among `names`."""
    depths: dict[str, int] = {}
    for name in names:
        found = TOWER.search(name)
        if found is None:
            continue
        block = NUMBERED.match(found[2])
        layer = int(block[2]) + 1 if block and block[1] == "blocks" else 0
        depths[found[1]] = max(layer, depths.get(found[1], 0))
    return depths


def place_of(name: str, depths: dict[str, int]) -> TowerLevel | None:
    """Return the place of a parameter by its dotted name; None outside both towers.

    Raises ValueError for a parameter of a tower that belongs to no known part, so that a new part
    cannot be forgotten here.
    """
    found = TOWER.search(name)
    if found is None:
        return None
    tower, inner = found[1], found[2]
    depth = depths[tower]
    block = NUMBERED.match(inner)
    part = inner.partition(".")[0]
    if block is not None:
        # Blocks are numbered from 0, grouping blocks by the layer (from 1) that they follow.
        level = int(block[2]) + (block[1] == "blocks")
    elif part in EMBEDDINGS:
        level = 0
    elif part in HEADS:
        level = depth + 1
    else:
        raise ValueError(f"parameter {name!r} belongs to no known part of the {tower} tower")
    return TowerLevel(tower, level, depth)
