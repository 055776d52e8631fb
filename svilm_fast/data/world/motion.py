"""Paths: where an object is, how large, how turned and whether it is lit, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations as unordered_pairs

import numpy as np

from svilm_fast.data.world.config import WorldConfig
from svilm_fast.data.world.vocabulary import DIRECTIONS, SIDES

SMALLEST, LARGEST = 0.68, 1.22
# Beyond the radius lies the shadow: an object that has left must take it along.
OUTSIDE = 1.4

# Radii as shares of the frame side, by number of objects: at least a quarter of it across.
RADII = {
    "small": {1: (0.18, 0.205), 2: (0.165, 0.18), 3: (0.145, 0.155)},
    "large": {1: (0.235, 0.265), 2: (0.205, 0.225), 3: (0.165, 0.18)},
}

_PLACEMENTS = 24


@dataclass(frozen=True)
class Event:
    """An action of one object from the start of frame `start` to the start of frame `end`."""

    action: str
    start: int
    end: int
    side: str | None = None


@dataclass(frozen=True)
class Path:
    """Arrays over the frames: centres [F, 2] and radii [F] in frame sides, angles [F] in radians,
    lit [F] (False in the dark half of a blink)."""

    centres: np.ndarray
    radii: np.ndarray
    angles: np.ndarray
    lit: np.ndarray


def place_objects(
    rng: np.random.Generator,
    config: WorldConfig,
    events: list[tuple[Event, ...]],
    sizes: list[str],
) -> list[Path]:
    """A path for each object; of several placements the one that keeps them furthest apart."""
    radii = [config.object_scale * rng.uniform(*RADII[size][len(events)]) for size in sizes]
    best: list[Path] = []
    best_gap = -np.inf
    for _ in range(_PLACEMENTS):
        paths = [draw_path(rng, config, found, radius) for found, radius in zip(events, radii)]
        gap = min((_gap(*pair) for pair in unordered_pairs(paths, 2)), default=np.inf)
        if gap > best_gap:
            best, best_gap = paths, gap
        if best_gap > 0.02:
            break
    return best


def _gap(first: Path, second: Path) -> float:
    between = np.hypot(*(first.centres - second.centres).T)
    return float((between - first.radii - second.radii).min())


def progress(event: Event, frames: int) -> np.ndarray:
    """How far `event` has come at each frame, 0 up to its start and 1 from its end on: [F]."""
    return np.clip((np.arange(frames) - event.start) / (event.end - event.start), 0, 1)


def draw_path(
    rng: np.random.Generator, config: WorldConfig, events: tuple[Event, ...], radius: float
) -> Path:
    """A random path that carries out `events` and stays inside the frame but to enter or leave."""
    frames = config.frames
    radii, angles, lit = _form(rng, config, events, radius)
    room = 1 - 2 * radii.max()
    shift = np.zeros((frames, 2))
    for event in events:
        if event.action.startswith("move "):
            reach = min(room, rng.uniform(0.36, 0.56) * (0.8 if len(events) > 1 else 1.0))
            direction = np.array(DIRECTIONS[event.action.removeprefix("move ")])
            shift += progress(event, frames)[:, None] * direction * reach
    low = radii.max() - shift.min(axis=0)
    high = 1 - radii.max() - shift.max(axis=0)
    # Two moves one after the other may need more room than there is: centre them, then.
    start = np.where(low <= high, rng.uniform(np.minimum(low, high), high), (low + high) / 2)
    centres = start + shift
    for event in events:
        if event.side is None:
            continue
        outward = np.array(SIDES[event.side])
        inner = centres[-1 if event.action == "leave" else 0]
        # Distance along `outward` from the inner place to where nothing is seen any more.
        distance = 0.5 + OUTSIDE * radii.max() - outward @ (inner - 0.5)
        amount = progress(event, frames)
        amount = amount if event.action == "leave" else 1 - amount
        centres = centres + amount[:, None] * outward * distance
    return Path(centres, radii, angles, lit)


def _form(
    rng: np.random.Generator, config: WorldConfig, events: tuple[Event, ...], radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    frames = config.frames
    radii = np.full(frames, radius)
    angles = np.full(frames, rng.uniform(-0.22, 0.22))
    lit = np.ones(frames, bool)
    for event in events:
        amount = progress(event, frames)
        if event.action == "grow":
            radii = radius * SMALLEST * (LARGEST / SMALLEST) ** amount
        elif event.action == "shrink":
            radii = radius * LARGEST * (SMALLEST / LARGEST) ** amount
        elif event.action == "spin":
            turns = rng.uniform(0.55, 0.8) * rng.choice([-1, 1])
            angles = angles + 2 * np.pi * turns * amount
        elif event.action == "blink":
            half = max(1, round(config.fps / 4))
            frame = np.arange(frames)
            dark = (frame - event.start) // half % 2 == 1
            lit &= ~(dark & (frame >= event.start) & (frame < event.end))
    return radii, angles, lit
