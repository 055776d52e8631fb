"""Colours and type of every picture, in a light and a dark edition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager

matplotlib.use("Agg")

FONTS = ("Inter", "Source Sans 3", "Segoe UI", "Helvetica Neue", "Noto Sans", "DejaVu Sans")
GOLDEN_ANGLE = 137.50776


@dataclass(frozen=True)
class Theme:
    """Named colours as hex strings; `series` are the lines of a chart in order."""

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
    """Matplotlib settings of a theme, for the time of the block."""
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


def group_colours(count: int) -> np.ndarray:
    """Colours of group tokens that neighbours in number can be told apart by: uint8 [count, 3].

    The lightness in OKLCH alternates between three levels; on each the hues step by the golden
    angle, which spreads any number of them evenly, and the levels are a third of a turn apart.
    """
    index = np.arange(count)
    lightness = np.array([0.70, 0.58, 0.82])[index % 3]
    chroma = np.array([0.17, 0.18, 0.13])[index % 3]
    hue = np.radians(25 + index // 3 * GOLDEN_ANGLE + index % 3 * 120)
    rgb = _oklab_to_srgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue))
    return np.round(255 * rgb).astype(np.uint8)


def rgb(colour: str) -> np.ndarray:
    """'#rrggbb' as uint8 [3]."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)


def hex_colour(colour: np.ndarray) -> str:
    """uint8 [3] as '#rrggbb'."""
    return "#{:02x}{:02x}{:02x}".format(*(int(c) for c in colour))


def _oklab_to_srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curved)
