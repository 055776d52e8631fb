"""Scenes: which objects a clip shows, what each does and when, drawn from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from svilm_fast.data.world.combinations import Combinations, Deed
from svilm_fast.data.world.config import WorldConfig
from svilm_fast.data.world.motion import Event, Path, place_objects
from svilm_fast.data.world.vocabulary import SIDE_PHRASES, SIDES, STAY, Split

_ATTEMPTS = 50


@dataclass(frozen=True)
class SceneObject:
    """A coloured shape with its events, in order of time, and its path over the frames."""

    color: str
    shape: str
    size: str
    events: tuple[Event, ...]
    path: Path

    @property
    def name(self) -> str:
        """Colour and shape, the noun of the captions."""
        return f"{self.color} {self.shape}"

    @property
    def actions(self) -> tuple[str, ...]:
        """What the object does, in order; `("stay",)` if it rests."""
        return tuple(event.action for event in self.events) or (STAY,)


@dataclass(frozen=True)
class Scene:
    """Everything that is seen and said of one clip."""

    split: Split
    seed: int
    background: str
    background_seed: int
    objects: tuple[SceneObject, ...]
    in_turn: bool

    def meaning(self, with_background: bool = True) -> dict[str, tuple]:
        """What the caption of each grain says, whatever its wording and the order of the names.

        Two clips are told apart by a grain if and only if its meanings differ.
        """
        background = self.background if with_background else ""
        things = tuple(sorted(thing.name for thing in self.objects))
        deeds = [
            (thing.name, tuple((event.action, event.side) for event in thing.events))
            for thing in self.objects
        ]
        told = (self.in_turn, *(deeds if self.in_turn else sorted(deeds, key=repr)))
        return {
            "coarse": (background, *things),
            "fine": told,
            "fused": (background, *told),
        }


def draw_scene(config: WorldConfig, split: Split, seed: int) -> Scene:
    """The scene of `seed` that `split` may show; equal arguments give equal scenes."""
    rng = np.random.default_rng(seed)
    allowed = config.combinations()
    weights = np.asarray(config.object_counts) / sum(config.object_counts)
    in_turn = bool(rng.random() < config.sequences)
    count = 1 + int(rng.choice(len(weights), p=weights))
    if count == 1 and in_turn:
        deeds = _two_deeds_of_one(rng, allowed, split)
        in_turn = len(deeds) > 1
        things = deeds[:1]
    else:
        deeds = things = _deeds(rng, allowed, split, count, in_turn)
        in_turn = in_turn and len(deeds) > 1
    spans = _spans(rng, config.frames, len(deeds), in_turn)
    events: list[list[Event]] = [[] for _ in things]
    for index, ((_, _, action), (start, end)) in enumerate(zip(deeds, spans)):
        if action != STAY:
            side = str(rng.choice(list(SIDES))) if action in SIDE_PHRASES else None
            events[min(index, len(things) - 1)].append(Event(action, start, end, side))
    sizes = [str(size) for size in rng.choice(["small", "large"], len(things))]
    paths = place_objects(rng, config, [tuple(found) for found in events], sizes)
    return Scene(
        split=split,
        seed=seed,
        background=str(rng.choice(config.backgrounds)),
        background_seed=int(rng.integers(2**53)),
        objects=tuple(
            SceneObject(color, shape, size, tuple(found), path)
            for (color, shape, _), size, found, path in zip(things, sizes, events, paths)
        ),
        in_turn=in_turn,
    )


def _deeds(
    rng: np.random.Generator, allowed: Combinations, split: Split, count: int, in_turn: bool
) -> list[Deed]:
    """Up to `count` deeds of objects that may meet, one of them at least no rest."""
    acting = [deed for deed in allowed.deeds[split] if deed[2] != STAY]
    best: list[Deed] = []
    for _ in range(_ATTEMPTS):
        deeds = [_pick(rng, acting)]
        while len(deeds) < count:
            may_join = frozenset.intersection(
                *(allowed.partners_of(split, (color, shape)) for color, shape, _ in deeds)
            )
            choices = acting if in_turn else allowed.deeds[split]
            partners = [deed for deed in choices if deed[:2] in may_join]
            if not partners:
                break
            deeds.append(_pick(rng, partners))
        if len(deeds) == count:
            # The one that surely acts need not be the one that is named first.
            return [deeds[index] for index in rng.permutation(count)]
        best = max(best, deeds, key=len)
    # Some worlds have no objects that may meet: their clips show fewer.
    return best


def _pick(rng: np.random.Generator, deeds: list[Deed]) -> Deed:
    return deeds[int(rng.integers(len(deeds)))]


def _two_deeds_of_one(rng: np.random.Generator, allowed: Combinations, split: Split) -> list[Deed]:
    """Two different actions of one object, or one action where the split has no two."""
    for _ in range(_ATTEMPTS):
        first = _deeds(rng, allowed, split, 1, False)[0]
        color, shape, action = first
        others = [
            other
            for other in allowed.actions_of(split, (color, shape))
            if other not in (action, STAY, "enter")
        ]
        if others and action != "leave":
            return [first, (color, shape, str(rng.choice(others)))]
    return _deeds(rng, allowed, split, 1, False)


def _spans(
    rng: np.random.Generator, frames: int, count: int, in_turn: bool
) -> list[tuple[int, int]]:
    """First frame and end (exclusive) of each deed: one after another, or over the whole clip."""
    if in_turn:
        borders = np.linspace(0, frames, count + 1)
        borders[1:-1] += rng.uniform(-0.06, 0.06, count - 1) * frames
        edges = [round(border) for border in borders]
        return list(pairwise(edges))
    spans = []
    for _ in range(count):
        length = round(frames * rng.uniform(0.62, 1.0))
        start = int(rng.integers(frames - length + 1))
        spans.append((start, start + length))
    return spans
