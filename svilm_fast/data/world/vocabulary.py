"""The words of the world: colours, shapes, backgrounds, actions and how each is said."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

Grain = Literal["coarse", "fine", "fused"]
GRAINS: tuple[Grain, ...] = ("coarse", "fine", "fused")

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (226, 44, 48),
    "yellow": (252, 208, 44),
    "green": (56, 176, 74),
    "blue": (36, 112, 238),
    "purple": (172, 66, 214),
    "white": (246, 246, 242),
}

SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "ring",
    "cross",
    "moon",
)

BACKGROUNDS: tuple[str, ...] = (
    "plain",
    "cloudy",
    "striped",
    "checked",
    "dotted",
    "gridded",
    "rippled",
)

DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}

SIDES: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "top": (0.0, -1.0),
    "bottom": (0.0, 1.0),
}

STAY = "stay"

# The first phrase of each action is the plain one.
PHRASES: dict[str, tuple[str, ...]] = {
    "move left": ("moves left", "slides to the left", "glides left"),
    "move right": ("moves right", "slides to the right", "glides right"),
    "move up": ("moves up", "rises", "climbs upwards"),
    "move down": ("moves down", "sinks", "drops downwards"),
    "spin": ("spins", "rotates", "turns around itself"),
    "grow": ("grows", "gets bigger", "swells"),
    "shrink": ("shrinks", "gets smaller", "dwindles"),
    "blink": ("blinks", "flashes", "flickers on and off"),
    "enter": ("enters", "comes in", "appears"),
    "leave": ("leaves", "goes out", "disappears"),
    STAY: ("stays still", "does not move", "rests"),
}

# These actions happen at one of the SIDES, which the phrase names.
SIDE_PHRASES: dict[str, str] = {"enter": " from the {}", "leave": " at the {}"}

ACTIONS: tuple[str, ...] = tuple(PHRASES)

# A turning circle looks like a resting one, so these pairs never occur.
INVISIBLE: frozenset[tuple[str, str]] = frozenset({("circle", "spin"), ("ring", "spin")})

NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three")


def with_article(noun: str) -> str:
    """`noun` behind its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
