"""Pictures of the group of every token, and of the group that every noun attends to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from svilm_fast.models.token_groups import NO_GROUP
from svilm_fast.report.canvas import NOTE_SIZE, PAGE_WIDTH, Canvas, wrap
from svilm_fast.report.probe import ClipProbe
from svilm_fast.report.strips import spotlight, tint, token_frames
from svilm_fast.report.theme import Theme, group_colours, hex_colour

LABEL_WIDTH = 1.55
PANEL_WIDTH = 2.5
WIDEST_PANEL = 4.0
PANEL_GAP = 0.35
MAX_POSITIONS = 8
FRAME_GAP = 0.05
ROW_GAP = 0.1
CAPTION_SIZE = 10.0
CAPTION_LINE = 0.19
BLOCK_GAP = 0.34
EMPTY = "(empty)"
LEGEND_LINE = 0.165
SWATCHES_PER_ROW = 16
SWATCHES_LEFT = 0.6
SWATCH_PITCH = 0.22


def shown_positions(positions: int) -> np.ndarray:
    """At most MAX_POSITIONS evenly spread temporal token positions: int [p]."""
    count = min(positions, MAX_POSITIONS)
    return ((np.arange(count) + 0.5) * positions / count).astype(int)


def group_shares(groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Share of the kept tokens that each group holds: float [G], sums to 1."""
    kept = groups[groups != NO_GROUP]
    return np.bincount(kept.ravel(), minlength=num_groups) / max(1, kept.size)


def draw_groups(probes: Sequence[ClipProbe], theme: Theme) -> Figure:
    """Draw each clip: its frames, its tokens coloured by group, and a row for every noun."""
    shown = [probe for probe in probes if probe.groups is not None]
    if not shown:
        raise ValueError("no clip has groups: the model was built with video.num_groups=0")
    sizes = [_frame_size(probe) for probe in shown]
    heights = [
        _caption_height(probe) + (2 + len(probe.nouns)) * (side[1] + ROW_GAP)
        for probe, side in zip(shown, sizes, strict=True)
    ]
    groups = max(probe.num_groups for probe in shown)
    legend = _legend_lines(shown)
    legend_height = _swatch_rows(groups) * SWATCH_PITCH + len(legend) * LEGEND_LINE + 0.3
    total = legend_height + sum(heights) + BLOCK_GAP * (len(shown) - 1) + 0.08
    canvas = Canvas(PAGE_WIDTH, total, theme)
    _draw_legend(canvas, groups, legend)
    top = 0.04 + legend_height
    for place, (probe, size, height) in enumerate(zip(shown, sizes, heights, strict=True)):
        if place:
            canvas.line(0, top - BLOCK_GAP / 2, PAGE_WIDTH, top - BLOCK_GAP / 2)
        _draw_clip(canvas, probe, size, top)
        top += height + BLOCK_GAP
    return canvas.figure


def _draw_clip(canvas: Canvas, probe: ClipProbe, size: tuple[float, float], top: float) -> None:
    assert probe.groups is not None
    colours = group_colours(probe.num_groups)
    canvas.text(0, top, "\n".join(_caption(probe)), size=CAPTION_SIZE, bold=True)
    top += _caption_height(probe)
    positions = shown_positions(len(probe.groups))
    frames = token_frames(probe.frames, len(probe.groups))[positions]
    groups = probe.groups[positions]
    step = size[1] + ROW_GAP
    frames_end = LABEL_WIDTH + len(positions) * (size[0] + FRAME_GAP) - FRAME_GAP
    left = max(frames_end + PANEL_GAP, PAGE_WIDTH - WIDEST_PANEL)
    _draw_row(canvas, frames, top, size, "frames", "")
    tinted = np.stack([tint(f, g, colours) for f, g in zip(frames, groups, strict=True)])
    used = int((group_shares(probe.groups, probe.num_groups) > 0).sum())
    _draw_row(canvas, tinted, top + step, size, "groups", f"{used} of {probe.num_groups} in use")
    for row, (noun, weights) in enumerate(zip(probe.nouns, probe.noun_weights, strict=True)):
        chosen = int(weights.argmax())
        lit = [
            spotlight(f, g, chosen, colours[chosen]) for f, g in zip(frames, groups, strict=True)
        ]
        y = top + (2 + row) * step
        empty = "" if (probe.groups == chosen).any() else f" {EMPTY}"
        note = f"group {chosen}, {weights[chosen]:.0%}{empty}"
        pointing = probe.pointing.get(noun)
        if pointing is not None:
            note += f"\non the object: {pointing.hit:.0%}"
        _draw_row(canvas, np.stack(lit), y, size, f"“{noun}”", note)
        canvas.box(
            LABEL_WIDTH - 0.16, y, 0.05, size[1], fill=hex_colour(colours[chosen]), radius=0.02
        )
        _draw_bars(canvas, weights, colours, (left, y, size[1]), "attention of the noun")
    shares = group_shares(probe.groups, probe.num_groups)
    _draw_bars(canvas, shares, colours, (left, top + step, size[1]), "share of the tokens")


def _draw_row(
    canvas: Canvas,
    frames: np.ndarray,
    top: float,
    size: tuple[float, float],
    label: str,
    note: str,
) -> None:
    lines = wrap(label, LABEL_WIDTH - 0.25, 9.5, 2, bold=True)
    middle = top + size[1] / 2
    height = 0.18 * len(lines) + (0.17 * len(note.splitlines()))
    canvas.text(0, middle - height / 2, "\n".join(lines), bold=True)
    if note:
        y = middle - height / 2 + 0.18 * len(lines) + 0.01
        canvas.note(0, y, note)
    for place, frame in enumerate(frames):
        canvas.image(LABEL_WIDTH + place * (size[0] + FRAME_GAP), top, *size, frame)


def _draw_bars(
    canvas: Canvas,
    weights: np.ndarray,
    colours: np.ndarray,
    place: tuple[float, float, float],
    title: str,
) -> None:
    left, top, height = place
    width = PAGE_WIDTH - left
    canvas.note(left, top, title)
    pitch = width / len(weights)
    floor, room = top + height - 0.16, height - 0.16 - 0.36
    largest = max(float(weights.max()), 1e-9)
    canvas.line(left, floor, PAGE_WIDTH, floor)
    for group, weight in enumerate(weights):
        tall = room * float(weight) / largest
        x = left + group * pitch + 0.1 * pitch
        canvas.box(x, floor - tall, 0.8 * pitch, tall, fill=hex_colour(colours[group]))
    best = int(weights.argmax())
    x = min(max(left + (best + 0.5) * pitch, left + 0.16), PAGE_WIDTH - 0.16)
    canvas.text(
        x, floor - room - 0.03, f"{weights[best]:.0%}", size=8, align="center", vertical="bottom"
    )
    for group in range(0, len(weights), max(1, len(weights) // 8)):
        canvas.note(left + (group + 0.5) * pitch, floor + 0.03, str(group), 7, align="center")


def _legend_lines(probes: Sequence[ClipProbe]) -> list[str]:
    """Explain the rows, and those labels that the picture uses."""
    lines = [
        "A colour is a group number, the same in every row. A noun’s row leaves the tokens of the "
        "group it attends to most bright; all other tokens are dark."
    ]
    empty = any(
        not (probe.groups == weights.argmax()).any()
        for probe in probes
        for weights in probe.noun_weights
    )
    if empty:
        lines.append(
            f"{EMPTY}: no token of the clip belongs to the group that the noun attends to most, so "
            "all tokens are dark."
        )
    if any(pointing for probe in probes for pointing in probe.pointing.values()):
        lines.append(
            "on the object: the share of the group’s tokens that lie on the object that the noun "
            "names, where the truth is known."
        )
    return [row for line in lines for row in wrap(line, PAGE_WIDTH, NOTE_SIZE, 3)]


def _swatch_rows(groups: int) -> int:
    return -(-groups // SWATCHES_PER_ROW)


def _draw_legend(canvas: Canvas, groups: int, lines: Sequence[str]) -> None:
    canvas.note(0, 0.13, "group", vertical="center")
    pitch = (PAGE_WIDTH - SWATCHES_LEFT) / SWATCHES_PER_ROW
    for group, colour in enumerate(group_colours(groups)):
        row, column = divmod(group, SWATCHES_PER_ROW)
        x, y = SWATCHES_LEFT + column * pitch, 0.06 + row * SWATCH_PITCH
        canvas.box(x, y, 0.26, 0.15, fill=hex_colour(colour), radius=0.02)
        canvas.note(x + 0.31, y + 0.075, str(group), vertical="center")
    top = _swatch_rows(groups) * SWATCH_PITCH + 0.1
    canvas.note(0, top, "\n".join(lines))


def _frame_size(probe: ClipProbe) -> tuple[float, float]:
    assert probe.groups is not None
    count = len(shown_positions(len(probe.groups)))
    room = PAGE_WIDTH - LABEL_WIDTH - PANEL_WIDTH - PANEL_GAP - (count - 1) * FRAME_GAP
    width = min(room / count, 1.25)
    return width, width * probe.frames.shape[1] / probe.frames.shape[2]


def _caption(probe: ClipProbe) -> list[str]:
    return wrap(probe.caption, PAGE_WIDTH - 0.2, CAPTION_SIZE, 2, bold=True)


def _caption_height(probe: ClipProbe) -> float:
    return len(_caption(probe)) * CAPTION_LINE + 0.1
