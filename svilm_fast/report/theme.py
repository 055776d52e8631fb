"""Colours and fonts of all pictures, in a light and a dark theme."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import to_hex, to_rgb

matplotlib.use("Agg")

FONTS = ("Inter", "Source Sans 3", "Segoe UI", "Helvetica Neue", "Noto Sans", "DejaVu Sans")
# Weight of a difference in lightness between group colours, relative to hue and saturation.
LIGHTNESS_WEIGHT = 0.55
# OKLab, Ottosson 2020: https://bottosson.github.io/posts/oklab/
CONES_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
CONES_TO_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@dataclass(frozen=True)
class Theme:
    """Colours by purpose, as hex strings; series: of the lines of a chart, in order."""

    name: str
    page: str
    surface: str
    ink: str
    muted: str
    line: str
    right: str
    wrong: str
    own: str
    pasted: str
    series: tuple[str, ...]


LIGHT = Theme(
    name="light",
    page="#f6f6f4",
    surface="#ffffff",
    ink="#1d2024",
    muted="#666c74",
    line="#dfe1e4",
    right="#178a5b",
    wrong="#c03d50",
    own="#2f6bd0",
    pasted="#dd7a26",
    series=("#2f6bd0", "#dd7a26", "#178a5b", "#8455c6", "#c03d50", "#1696a8"),
)
DARK = Theme(
    name="dark",
    page="#121417",
    surface="#1a1d21",
    ink="#e9eaec",
    muted="#9ba1a9",
    line="#33383f",
    right="#41c48d",
    wrong="#f07286",
    own="#74a5f7",
    pasted="#f5a055",
    series=("#74a5f7", "#f5a055", "#41c48d", "#b993f2", "#f07286", "#4cc5d6"),
)
THEMES = (LIGHT, DARK)


@contextmanager
def drawing(theme: Theme) -> Iterator[None]:
    """Apply the Matplotlib settings of a theme inside the `with` block."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    settings: Any = {
        "font.family": [name for name in FONTS if name in installed],
        "font.size": 9.5,
        "figure.facecolor": theme.surface,
        "savefig.facecolor": theme.surface,
        "axes.facecolor": theme.surface,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.line,
        "grid.linewidth": 0.7,
        "text.color": theme.ink,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.8,
    }
    with matplotlib.rc_context(settings):
        yield


@lru_cache(maxsize=8)
def _group_palette(count: int) -> np.ndarray:
    """Greedy search: each colour is the one farthest from all before it."""
    lightness, chroma, hue = (
        axis.ravel()
        for axis in np.meshgrid(
            np.arange(0.46, 0.89, 0.06),
            np.arange(0.09, 0.25, 0.03),
            np.radians(np.arange(0, 360, 6)),
            indexing="ij",
        )
    )
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    linear = _oklab_to_linear(lightness, a, b)
    inside = ((linear >= 0) & (linear <= 1)).all(axis=-1)
    colours = np.stack([LIGHTNESS_WEIGHT * lightness, a, b], axis=-1)[inside]
    start = np.array([LIGHTNESS_WEIGHT * 0.64, 0.18 * np.cos(0.45), 0.18 * np.sin(0.45)])
    chosen = [int(np.linalg.norm(colours - start, axis=1).argmin())]
    apart = np.linalg.norm(colours - colours[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(colours - colours[chosen[-1]], axis=1))
    return np.round(255 * _curved(linear[inside][chosen])).astype(np.uint8)


def group_colours(count: int) -> np.ndarray:
    """Distinct colours for groups: uint8 [count, 3]; a smaller count gives the first of them.

    Each is the saturated sRGB colour farthest from those before it in OKLab. Lightness counts less
    than hue and saturation, because a tinted frame changes it.
    """
    return _group_palette(max(1, count))[:count].copy()


def rgb(colour: str) -> np.ndarray:
    """Convert '#rrggbb' to uint8 [3]."""
    return np.round(255 * np.array(to_rgb(colour))).astype(np.uint8)


def hex_colour(colour: np.ndarray) -> str:
    """Convert uint8 [3] to '#rrggbb'."""
    return to_hex(tuple(colour / 255))


def _oklab_to_linear(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Linear sRGB [n, 3]; values outside [0, 1] are out of gamut."""
    oklab = np.stack([lightness, a, b], axis=-1)
    cones = (oklab @ np.linalg.inv(CONES_TO_OKLAB).T) ** 3
    linear: np.ndarray = cones @ CONES_TO_LINEAR.T
    return linear


def _curved(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
