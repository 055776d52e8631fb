"""A drawing surface in inches from the top left corner, for pictures made of video frames."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, Rectangle

from svilm_fast.report.theme import Theme

PAGE_WIDTH = 11.0
MARGIN = 0.05  # inches around the drawing, so that no outline at its edge is cut
LINE_HEIGHT = 1.35
NOTE_SIZE = 8.5  # points
RULER_DPI = 144.0


class Canvas:
    """A figure of `width` x `height` inches plus a narrow margin; y grows downwards."""

    def __init__(self, width: float, height: float, theme: Theme) -> None:
        self.theme = theme
        self.width, self.height = width, height
        self.figure: Figure = plt.figure(figsize=(width + 2 * MARGIN, height + 2 * MARGIN))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.limits = {"xlim": (-MARGIN, width + MARGIN), "ylim": (height + MARGIN, -MARGIN)}
        self.axes.set(**self.limits, autoscale_on=False)
        self.axes.axis("off")

    def image(self, x: float, y: float, width: float, height: float, pixels: np.ndarray) -> None:
        """Draw pixels uint8 [h, w, 3] over a rectangle; small images keep sharp pixels."""
        smooth = "nearest" if max(pixels.shape[:2]) < 128 else "antialiased"
        extent = (x, x + width, y + height, y)
        self.axes.imshow(pixels, extent=extent, aspect="auto", interpolation=smooth, zorder=2)
        self.axes.set(**self.limits)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str | None = None,
        edge: str | None = None,
        thickness: float = 1.5,
        radius: float = 0.0,
        alpha: float = 1.0,
        layer: float = 3,
    ) -> None:
        """Draw a rectangle, filled or outlined; radius: of its corners, in inches."""
        look: dict[str, Any] = {
            "facecolor": fill or "none",
            "edgecolor": edge or "none",
            "linewidth": thickness if edge else 0,
            "alpha": alpha,
            "zorder": layer,
        }
        patch: Rectangle | FancyBboxPatch
        if radius:
            style = f"round,pad=0,rounding_size={radius}"
            patch = FancyBboxPatch((x, y), width, height, boxstyle=style, **look)
        else:
            patch = Rectangle((x, y), width, height, **look)
        self.axes.add_patch(patch)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 9.5,
        colour: str | None = None,
        bold: bool = False,
        align: str = "left",
        vertical: str = "top",
    ) -> None:
        """Draw lines of text; (x, y) is the point of its box that `align` and `vertical` name."""
        self.axes.text(
            x,
            y,
            text,
            fontsize=size,
            color=colour or self.theme.ink,
            fontweight="bold" if bold else "normal",
            ha=align,
            va=vertical,
            linespacing=LINE_HEIGHT,
            zorder=5,
            parse_math=False,
        )

    def note(
        self,
        x: float,
        y: float,
        text: str,
        size: float = NOTE_SIZE,
        align: str = "left",
        vertical: str = "top",
    ) -> None:
        """Draw small text in the muted colour."""
        muted = self.theme.muted
        self.text(x, y, text, size=size, colour=muted, align=align, vertical=vertical)

    def cell(
        self, x: float, y: float, width: float, height: float, value: float, size: float = 8
    ) -> None:
        """Write a share with two decimals in the middle of a rectangle that it shades."""
        self.text(
            x + width / 2,
            y + height / 2,
            f"{value:.2f}",
            size=size,
            colour=self.theme.surface if value > 0.75 else self.theme.ink,
            align="center",
            vertical="center",
        )

    def line(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Draw a hairline."""
        self.axes.plot([x0, x1], [y0, y1], color=self.theme.line, linewidth=0.9, zorder=1)


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width in inches of one line at `size` points, in the current font."""
    return _text_width(text, size, bold, tuple(plt.rcParams["font.family"]))


def wrap(text: str, width: float, size: float, lines: int = 2, bold: bool = False) -> list[str]:
    """Break a text into at most `lines` lines of `width` inches; a line that is cut ends in "…"."""
    rows: list[str] = []
    for word in text.split():
        longer = f"{rows[-1]} {word}" if rows else word
        if rows and text_width(longer, size, bold) <= width:
            rows[-1] = longer
        else:
            rows.append(word)
    if len(rows) > lines:
        rows = [*rows[: lines - 1], " ".join(rows[lines - 1 :])]
    return [_shorten(row, width, size, bold) for row in rows]


def to_png(figure: Figure, *, dpi: int = 150, title: str | None = None) -> bytes:
    """The figure as PNG bytes, which name `title` as text; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None, "Title": title})
    plt.close(figure)
    return buffer.getvalue()


@lru_cache(maxsize=4096)
def _text_width(text: str, size: float, bold: bool, family: tuple[str, ...]) -> float:
    weight = "bold" if bold else "normal"
    font = FontProperties(family=list(family), size=size, weight=weight)
    width, _, _ = _ruler().get_text_width_height_descent(text, font, ismath=False)
    return float(width) / RULER_DPI


@lru_cache(maxsize=1)
def _ruler() -> RendererAgg:
    return RendererAgg(1, 1, RULER_DPI)


def _shorten(text: str, width: float, size: float, bold: bool) -> str:
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text.rstrip() + "…"
