"""A picture of the tokens that every drop pattern keeps of one clip."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from svilm_fast.core.philox import Site, StepSeeds
from svilm_fast.models.token_dropping import PATTERNS, select_tokens
from svilm_fast.report.canvas import PAGE_WIDTH, Canvas
from svilm_fast.report.strips import keep_lit, token_frames
from svilm_fast.report.theme import Theme

LABEL_WIDTH = 1.45
GAP = 0.05
ROW_GAP = 0.22  # holds the counts
LEGEND = 0.3


def kept_grids(
    frames: np.ndarray, grid: tuple[int, int, int], rate: float, seed: int
) -> dict[str, np.ndarray]:
    """Kept tokens bool [T, h, w] of the clip uint8 [F, H, W, 3], by pattern."""
    clip = torch.from_numpy(frames)[None]
    seeds = StepSeeds(seed, 0, torch.zeros(1, dtype=torch.int64)).at(Site.TOKEN_DROP)
    found = {}
    for pattern in PATTERNS:
        ids = select_tokens(seeds, grid, rate=rate, pattern=pattern, frames=clip).ids
        kept = torch.zeros(math.prod(grid), dtype=torch.bool)
        kept[ids[0]] = True
        found[pattern] = kept.view(grid).numpy()
    return found


def draw_drop_patterns(
    frames: np.ndarray,
    grid: tuple[int, int, int],
    theme: Theme,
    *,
    rate: float = 0.9,
    seed: int = 0,
) -> Figure:
    """Draw the clip, and below it a row for each pattern, where dropped tokens are grey.

    frames: uint8 [F, H, W, 3], multiples of the grid. grid: token positions along time, height and
    width; each time is a column. seed: of the run whose first step is drawn.
    """
    shown = token_frames(frames, grid[0])
    kept = kept_grids(frames, grid, rate, seed)
    width = (PAGE_WIDTH - LABEL_WIDTH - GAP * (grid[0] - 1)) / grid[0]
    height = width * frames.shape[1] / frames.shape[2]
    canvas = Canvas(PAGE_WIDTH, LEGEND + (len(kept) + 1) * (height + ROW_GAP), theme)
    total = math.prod(grid)
    canvas.note(
        0,
        0,
        f"{' x '.join(map(str, grid))} = {total:,} tokens (time x height x width), drop rate "
        f"{rate:g}; numbers: tokens kept at each time",
    )
    rows: dict[str, np.ndarray | None] = {"all tokens": None, **kept}
    for number, (label, row) in enumerate(rows.items()):
        top = LEGEND + number * (height + ROW_GAP)
        canvas.text(0, top, label, bold=True)
        count = total if row is None else int(row.sum())
        canvas.note(0, top + 0.22, f"{count:,} kept")
        for time, frame in enumerate(shown):
            left = LABEL_WIDTH + time * (width + GAP)
            pixels = frame if row is None else keep_lit(frame, row[time])
            canvas.image(left, top, width, height, pixels)
            if row is not None:
                middle, below = left + width / 2, top + height + 0.02
                canvas.note(middle, below, str(row[time].sum()), size=7.5, align="center")
    return canvas.figure
