"""Which combinations each split may show: the test set holds ones that training never shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations as unordered_pairs
from itertools import product

import numpy as np

from svilm_fast.data.world.vocabulary import INVISIBLE, STAY, Split

# One combination in PARTS goes to the test set, one to the validation set, the others to training.
PARTS = 6

Thing = tuple[str, str]
Deed = tuple[str, str, str]


@dataclass(frozen=True)
class Combinations:
    """The split of every (colour, shape, action) and of every pair of (colour, shape).

    With `holdout="object_action"` a test object never does in training what it does in the test,
    and two objects of a test clip never meet in training; with `"object"` training never shows a
    test object at all. Every single word is seen in training.
    """

    deeds: dict[Split, tuple[Deed, ...]]
    pairs: dict[frozenset[Thing], Split]
    _actions: dict[tuple[Split, Thing], tuple[str, ...]] = field(repr=False)
    _partners: dict[tuple[Split, Thing], frozenset[Thing]] = field(repr=False)

    def actions_of(self, split: Split, thing: Thing) -> tuple[str, ...]:
        """What `thing` may do in clips of `split`."""
        return self._actions.get((split, thing), ())

    def partners_of(self, split: Split, thing: Thing) -> frozenset[Thing]:
        """The other objects that clips of `split` may show together with `thing`."""
        return self._partners.get((split, thing), frozenset())


@lru_cache(maxsize=64)
def split_combinations(
    colors: tuple[str, ...],
    shapes: tuple[str, ...],
    actions: tuple[str, ...],
    holdout: str,
    seed: int,
) -> Combinations:
    """The combinations of a world; raises ValueError where the words are too few to split."""
    rng = np.random.default_rng([seed, 0x5917])
    # A sum of permuted indices modulo PARTS spreads the held-out cells evenly over every row.
    rank = {
        word: int(position)
        for words in (colors, shapes, actions)
        for word, position in zip(words, rng.permutation(len(words)))
    }

    def part(*words: str) -> Split:
        residue = sum(rank[word] for word in words) % PARTS
        return "test" if residue == 0 else "val" if residue == 1 else "train"

    deeds: dict[Split, list[Deed]] = {"train": [], "val": [], "test": []}
    actions_of: dict[tuple[Split, Thing], list[str]] = {}
    for color, shape, action in product(colors, shapes, actions):
        if (shape, action) in INVISIBLE:
            continue
        key = (color, shape) if holdout == "object" else (color, shape, action)
        split = part(*key)
        deeds[split].append((color, shape, action))
        actions_of.setdefault((split, (color, shape)), []).append(action)
    _check(deeds, colors, shapes, actions)
    pairs = _split_pairs(list(product(colors, shapes)), holdout, part, rng)
    partners: dict[tuple[Split, Thing], set[Thing]] = {}
    for pair, split in pairs.items():
        for thing in pair:
            partners.setdefault((split, thing), set()).update(pair - {thing})
    return Combinations(
        {split: tuple(found) for split, found in deeds.items()},
        pairs,
        {key: tuple(found) for key, found in actions_of.items()},
        {key: frozenset(found) for key, found in partners.items()},
    )


def _split_pairs(
    things: list[Thing],
    holdout: str,
    part: Callable[..., Split],
    rng: np.random.Generator,
) -> dict[frozenset[Thing], Split]:
    pairs = [frozenset(pair) for pair in unordered_pairs(things, 2)]
    if holdout == "object":
        homes = [{part(*thing) for thing in pair} for pair in pairs]
        return {pair: home.pop() for pair, home in zip(pairs, homes) if len(home) == 1}
    order = rng.permutation(len(pairs))
    held = len(pairs) // PARTS
    return {
        pairs[index]: "test" if place < held else "val" if place < 2 * held else "train"
        for place, index in enumerate(order)
    }


def _check(
    deeds: dict[Split, list[Deed]],
    colors: tuple[str, ...],
    shapes: tuple[str, ...],
    actions: tuple[str, ...],
) -> None:
    seen = {word for deed in deeds["train"] for word in deed}
    missing = [word for word in (*colors, *shapes, *actions) if word not in seen]
    if missing:
        raise ValueError(
            f"too few combinations: training would never show {missing[0]!r}; "
            "add colors, shapes or actions"
        )
    for split in ("val", "test"):
        if not any(action != STAY for _, _, action in deeds[split]):
            raise ValueError(
                f"too few combinations: none is left for {split}; add colors, shapes or actions"
            )
