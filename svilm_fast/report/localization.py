"""Timelines: annotated and predicted segments of videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from svilm_fast.core.terminal import printable
from svilm_fast.data.formats.activitynet import AnnotatedSegment, PredictedSegment
from svilm_fast.report.canvas import PAGE_WIDTH
from svilm_fast.report.theme import Theme, group_colours, hex_colour

_LANE = 0.3  # inches
_HEAD = 0.55  # inches above a video's lanes, its name and axis included
_LEGEND_COLUMNS = 6


@dataclass(frozen=True)
class VideoTimeline:
    """One video. annotated: None where there is no ground truth; predicted: by falling score."""

    name: str
    duration: float
    annotated: Sequence[AnnotatedSegment] | None
    predicted: Sequence[PredictedSegment]


def shown_predictions(predicted: Sequence[PredictedSegment], count: int) -> list[PredictedSegment]:
    """The `count` best predictions that do not overlap a better one by a tenth of the shorter."""
    chosen: list[PredictedSegment] = []
    for one in sorted(predicted, key=lambda segment: -segment.score):
        overlaps = any(
            min(one.end, other.end) - max(one.start, other.start)
            > 0.1 * min(one.end - one.start, other.end - other.start)
            for other in chosen
        )
        if not overlaps:
            chosen.append(one)
        if len(chosen) == count:
            break
    return chosen


def draw_timelines(videos: Sequence[VideoTimeline], theme: Theme, predictions: int = 10) -> Figure:
    """A panel for each video: its annotations above, its best predictions below.

    The colour says the label, the opacity of a prediction its score relative to the best one.
    """
    shown = [shown_predictions(video.predicted, predictions) for video in videos]
    labels: dict[str, None] = {}
    for video, best in zip(videos, shown):
        labels |= dict.fromkeys(segment.label for segment in video.annotated or ())
        labels |= dict.fromkeys(segment.label for segment in best)
    colours = {
        label: hex_colour(row) for label, row in zip(labels, group_colours(max(1, len(labels))))
    }
    lanes = [1 + (video.annotated is not None) for video in videos]
    legend = -(-len(labels) // _LEGEND_COLUMNS) * 0.22 + 0.25
    heights = [_HEAD + _LANE * count for count in lanes]
    total = sum(heights) + legend
    figure = plt.figure(figsize=(PAGE_WIDTH, total))
    top = total - legend
    for video, best, count, height in zip(videos, shown, lanes, heights):
        axes = figure.add_axes((0.09, (top - height + 0.28) / total, 0.89, (_LANE * count) / total))
        top -= height
        rows = [] if video.annotated is None else [("annotated", video.annotated, 1.0)]
        strongest = max((segment.score for segment in best), default=1.0)
        for place, (_, segments, alpha) in enumerate(rows):
            for segment in segments:
                _bar(axes, place, segment, colours[segment.label], alpha, theme)
        for one in best:
            share = 0.25 + 0.75 * one.score / max(strongest, 1e-9)
            _bar(axes, len(rows), one, colours[one.label], share, theme)
        names = [*(name for name, *_ in rows), "predicted"]
        axes.set(xlim=(0, video.duration), ylim=(count, 0))
        axes.set_yticks(np.arange(count) + 0.5, names)
        axes.tick_params(axis="both", length=0, labelsize=8)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        name = printable(video.name, lines=False)
        # A name may hold dollar signs, which are no formula.
        axes.set_title(f"{name}, {video.duration:.1f} s", pad=3, fontsize=9, parse_math=False)
    patches = [Patch(color=colour, label=printable(label)) for label, colour in colours.items()]
    if patches:
        box = figure.legend(handles=patches, loc="upper left", ncols=_LEGEND_COLUMNS, fontsize=8)
        for text in box.get_texts():
            text.set_parse_math(False)
    return figure


def _bar(
    axes: Axes,
    lane: int,
    segment: AnnotatedSegment | PredictedSegment,
    colour: str,
    alpha: float,
    theme: Theme,
) -> None:
    axes.barh(
        lane + 0.5,
        segment.end - segment.start,
        left=segment.start,
        height=0.78,
        color=colour,
        alpha=alpha,
        edgecolor=theme.surface,
        linewidth=1,
    )
