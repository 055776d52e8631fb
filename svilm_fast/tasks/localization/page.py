"""The page of a localization run: figures with their protocol, timelines, curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from svilm_fast.evaluation.localization import LocalizationResult
from svilm_fast.objectives.base import Metric
from svilm_fast.report.localization import VideoTimeline, draw_timelines
from svilm_fast.report.page import HeadlineTile, PageContent, Section, picture
from svilm_fast.report.sections import curves_section
from svilm_fast.tasks.base import ReportRequest
from svilm_fast.tasks.localization.predict import ANY, Evaluated

_TIMELINES = (
    "Annotated segments above, predictions below: the colour is the label, the opacity the score. "
    "Of predictions that overlap, the best one is drawn."
)


def page_content(
    request: ReportRequest, evaluated: Evaluated | None, metrics: Mapping[str, Metric]
) -> PageContent:
    """Sections and tiles; evaluated: None without a split. metrics: of the training."""
    sections, tiles = [], []
    if evaluated is not None and request.split is not None:
        sections += [
            result_section(evaluated.result, request.split),
            timeline_section(evaluated, request.clips),
        ]
        means = evaluated.result.map_by_threshold
        middle = 0.5
        tiles = [
            HeadlineTile(f"{evaluated.result.average:.1f} %", "average mAP"),
            HeadlineTile(f"{means[middle]:.1f} %", f"mAP at IoU {middle:g}"),
        ]
    if request.series:
        sections.append(curves_section(request.series, metrics))
    parameters = sum(parameter.numel() for parameter in request.model.parameters())
    return PageContent(sections, tiles, parameters)


def result_section(result: LocalizationResult, split: str) -> Section:
    """mAP at every threshold, the weakest classes, and the protocol."""
    order = np.argsort(result.ap.mean(axis=0), kind="stable")
    weakest = [f"{result.classes[i]} {100 * result.ap[:, i].mean():.1f}" for i in order[:5]]
    notes = [f"{name.replace('_', ' ')}: {value}" for name, value in result.protocol.items()]
    rows = [(f"mAP at {t:.2f}", [f"{v:.2f} %"]) for t, v in result.map_by_threshold.items()]
    rows.append(("average", [f"{result.average:.2f} %"]))
    text = (
        f"Mean average precision on the {split} split. Classes with the lowest average: "
        f"{', '.join(weakest)}."
    )
    return Section("Localization", text, table=rows, notes=notes)


def timeline_section(evaluated: Evaluated, count: int) -> Section:
    """Timelines of the first videos that have annotations."""
    subset = evaluated.annotated
    names = [name for name in evaluated.predictions if subset[name].segments][:count]
    rows = []
    for name in names:
        segments = subset[name].segments
        predicted = evaluated.predictions[name]
        ends = [s.end for s in segments] + [s.end for s in predicted]
        annotated = [s if evaluated.labelled else s._replace(label=ANY) for s in segments]
        length = subset[name].duration or max(ends)
        rows.append(VideoTimeline(name, length, annotated, predicted))
    section = Section("Timelines", _TIMELINES)
    if rows:
        alt = f"Annotated and predicted segments of {', '.join(names)}"
        drawn = picture("timelines", lambda theme: draw_timelines(rows, theme), alt)
        section.pictures.append(("", drawn))
    return section
