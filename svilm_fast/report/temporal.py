"""Pictures of temporal grouping: assignments with paste masks, and similarities of segments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

from svilm_fast.report.canvas import PAGE_WIDTH, Canvas, wrap
from svilm_fast.report.probe import BlendedProbe, ClipProbe
from svilm_fast.report.strips import token_frames
from svilm_fast.report.theme import Theme

LABEL_WIDTH = 1.2
COLUMN_GAP = 0.5
CELL_GAP = 0.05
CAPTION_SIZE = 9.5
CAPTION_HEIGHT = 0.45
BAND = 0.27
BLOCK_GAP = 0.3


def draw_assignments(probes: Sequence[ClipProbe], theme: Theme) -> Figure:
    """Draw blended clips over time: frames, the paste mask, and the model's assignment a [T, 2]."""
    shown = [(probe, probe.blended) for probe in probes if probe.blended is not None]
    if not shown:
        raise ValueError("no clip was blended: cut and paste needs a batch of at least two clips")
    segments = max(len(blended.own) for _, blended in shown)
    columns = 2 if segments <= 5 and len(shown) > 1 else 1
    width = (PAGE_WIDTH - (columns - 1) * COLUMN_GAP) / columns
    cell = min(1.0, (width - LABEL_WIDTH - 0.05) / segments)
    height = max(
        CAPTION_HEIGHT + _frame_height(p, cell) + 3 * (BAND + 0.05) + 0.14 for p, _ in shown
    )
    rows = -(-len(shown) // columns)
    canvas = Canvas(PAGE_WIDTH, rows * height + (rows - 1) * BLOCK_GAP + 0.35, theme)
    _draw_legend(canvas)
    for place, (probe, blended) in enumerate(shown):
        left = (place % columns) * (width + COLUMN_GAP)
        top = 0.35 + (place // columns) * (height + BLOCK_GAP)
        _draw_assignment(canvas, probe, blended, left, top, width, cell)
    return canvas.figure


def draw_similarity(probes: Sequence[ClipProbe], theme: Theme) -> Figure:
    """Draw the cosine similarity of every pair of segments, with frames along both sides.

    One row for each clip: unchanged, blended, and (if known) blended before training.
    """
    panels = [_panels(probe) for probe in probes]
    if not panels:
        raise ValueError("no clips to draw: name at least one")
    columns = max(len(row) for row in panels)
    width = min(5.0, (PAGE_WIDTH - (columns - 1) * COLUMN_GAP) / columns)
    height = width + 0.62
    canvas = Canvas(PAGE_WIDTH, len(probes) * (height + BLOCK_GAP) - BLOCK_GAP + 0.06, theme)
    for row, (probe, found) in enumerate(zip(probes, panels, strict=True)):
        top = 0.04 + row * (height + BLOCK_GAP)
        caption = wrap(probe.caption, PAGE_WIDTH - 0.2, CAPTION_SIZE, 1, bold=True)[0]
        canvas.text(0, top, caption, size=CAPTION_SIZE, bold=True)
        for column, (title, frames, matrix, own) in enumerate(found):
            left = column * (width + COLUMN_GAP)
            _draw_matrix(canvas, title, frames, matrix, own, (left, top + 0.28, width))
    return canvas.figure


def mean_off_diagonal(matrix: np.ndarray) -> float:
    """Mean similarity of different segments; 1.0 for a single one."""
    count = len(matrix)
    if count < 2:
        return 1.0
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1)))


def _panels(
    probe: ClipProbe,
) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]]:
    panels: list[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]] = [
        ("the clip as it is", probe.frames, probe.clean, None)
    ]
    if (blended := probe.blended) is not None:
        panels.append(("cut and pasted", blended.frames, blended.similarity, blended.own))
        if blended.untrained_similarity is not None:
            before = blended.untrained_similarity
            panels.append(("before training", blended.frames, before, blended.own))
    return panels


def _draw_assignment(
    canvas: Canvas,
    probe: ClipProbe,
    blended: BlendedProbe,
    left: float,
    top: float,
    width: float,
    cell: float,
) -> None:
    theme = canvas.theme
    caption = wrap(probe.caption, width - 0.1, CAPTION_SIZE, 2, bold=True)
    bottom = top + CAPTION_HEIGHT - 0.07
    canvas.text(left, bottom, "\n".join(caption), size=CAPTION_SIZE, bold=True, vertical="bottom")
    top += CAPTION_HEIGHT
    segments = len(blended.own)
    frames = token_frames(blended.frames, segments)
    tall = _frame_height(probe, cell)
    below = top + tall + 0.1
    right_share = float(((blended.assignment[:, 0] > 0.5) == blended.own).mean())
    names = ("paste mask", "a: own", "a: pasted")
    for row, name in enumerate(names):
        y = below + row * (BAND + 0.05) + BAND / 2
        canvas.note(left, y, name, vertical="center")
    note = f"{right_share:.0%} of\nsegments right"
    canvas.note(left, top + tall / 2, note, vertical="center")
    for place in range(segments):
        x = left + LABEL_WIDTH + place * cell
        wide = cell - CELL_GAP
        canvas.image(x, top, wide, tall, frames[place])
        colour = theme.own if blended.own[place] else theme.pasted
        kind = "own" if blended.own[place] else "pasted"
        canvas.box(x, below, wide, BAND, fill=colour, radius=0.03)
        canvas.text(
            x + wide / 2,
            below + BAND / 2,
            kind,
            size=8,
            colour=theme.surface,
            align="center",
            vertical="center",
            bold=True,
        )
        for column, tone in enumerate((theme.own, theme.pasted)):
            y = below + (column + 1) * (BAND + 0.05)
            value = float(blended.assignment[place, column])
            canvas.box(x, y, wide, BAND, fill=tone, alpha=0.06 + 0.84 * value, radius=0.03)
            canvas.cell(x, y, wide, BAND, value)


def _draw_legend(canvas: Canvas) -> None:
    theme = canvas.theme
    x = 0.0
    for colour, label in (
        (theme.own, "the clip's own segments"),
        (theme.pasted, "pasted from another clip"),
    ):
        canvas.box(x, 0.06, 0.16, 0.13, fill=colour, radius=0.02)
        canvas.note(x + 0.23, 0.125, label, vertical="center")
        x += 2.0


def _draw_matrix(
    canvas: Canvas,
    title: str,
    frames: np.ndarray,
    matrix: np.ndarray,
    own: np.ndarray | None,
    place: tuple[float, float, float],
) -> None:
    theme = canvas.theme
    left, top, width = place
    count = len(matrix)
    mean = mean_off_diagonal(matrix)
    canvas.note(left, top, title, size=9)
    canvas.note(left + width, top, f"mean of different segments {mean:.2f}", align="right")
    top += 0.24
    cell = width / (count + 1)
    thumb = cell - 0.06
    # From the page's surface (0 and below) to the theme's first colour (1).
    colours = LinearSegmentedColormap.from_list("similarity", [theme.surface, theme.series[0]])
    pictures = token_frames(frames, count)
    for index in range(count):
        across = left + (index + 1) * cell + 0.03
        down = top + (index + 1) * cell + 0.03
        canvas.image(across, top + 0.03, thumb, thumb, pictures[index])
        canvas.image(left + 0.03, down, thumb, thumb, pictures[index])
        if own is not None:
            edge = theme.own if own[index] else theme.pasted
            canvas.box(across, top + 0.03, thumb, thumb, edge=edge, thickness=2)
            canvas.box(left + 0.03, down, thumb, thumb, edge=edge, thickness=2)
    for row in range(count):
        for column in range(count):
            value = float(matrix[row, column])
            x, y = left + (column + 1) * cell, top + (row + 1) * cell
            shade = to_hex(colours(min(max(value, 0.0), 1.0)))
            canvas.box(x + 0.015, y + 0.015, cell - 0.03, cell - 0.03, fill=shade, layer=2)
            canvas.cell(x, y, cell, cell, value, size=min(9.0, 15 * cell))


def _frame_height(probe: ClipProbe, cell: float) -> float:
    return (cell - CELL_GAP) * probe.frames.shape[1] / probe.frames.shape[2]
