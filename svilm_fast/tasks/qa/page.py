"""The page of question answering: accuracy by type against the majority, examples, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from svilm_fast.core.text import counted
from svilm_fast.evaluation.embed import small_frames
from svilm_fast.objectives.base import Metric
from svilm_fast.report.canvas import PAGE_WIDTH, Canvas, wrap
from svilm_fast.report.page import HeadlineTile, PageContent, Section, picture
from svilm_fast.report.sections import curves_section
from svilm_fast.report.strips import film_strip
from svilm_fast.report.theme import Theme, rgb
from svilm_fast.tasks.base import EvaluationRequest, ReportRequest
from svilm_fast.tasks.qa.evaluation import Answered, QAEvaluator, QAResult

FRAMES, FRAME_SIZE = 4, 160
STRIP_WIDTH, ROW_GAP, BAR_HEIGHT = 6.0, 0.3, 0.22

TEXT = (
    "Every question of the {split} split is answered once; the answer must match exactly. Accuracy "
    "is the number of right answers over the number of questions. The majority baseline gives the "
    "most frequent training answer of the question's type."
)
EXAMPLES = (
    "Questions with the most probable answers of the model. The right answer is green, and a wrong "
    "answer that the model gave is red."
)


def qa_page(
    evaluator: QAEvaluator | None, metrics: Mapping[str, Metric], request: ReportRequest
) -> PageContent:
    """Run the evaluator and return the sections; without one only the curves of `metrics`."""
    sections: list[Section] = []
    tiles: list[HeadlineTile] = []
    if evaluator is not None:
        how = EvaluationRequest(request.device, progress=request.progress)
        result = evaluator.run(request.model, how)
        sections += _sections(result, evaluator, request)
        total, majority = result.accuracy.total, result.majority.total
        tiles = [
            HeadlineTile(f"{total.accuracy:.1f} %", "accuracy", f"{total.asked:,} questions"),
            HeadlineTile(f"{majority.accuracy:.1f} %", "majority baseline"),
            HeadlineTile(f"{result.accuracy.mean_of_types:.1f} %", "mean over types"),
        ]
    if request.series:
        sections.append(curves_section(request.series, metrics))
    parameters = sum(parameter.numel() for parameter in request.model.parameters())
    return PageContent(sections, tiles, parameters)


def _sections(result: QAResult, evaluator: QAEvaluator, request: ReportRequest) -> list[Section]:
    alt = "; ".join(
        f"{kind}: {count.accuracy:.1f} %, majority {result.majority.by_type[kind].accuracy:.1f} %"
        for kind, count in result.accuracy.by_type.items()
    )
    bars = Section(
        "Accuracy by type of question",
        TEXT.format(split=evaluator.split),
        [("", picture("qa_types", lambda theme: draw_types(result, theme), alt))],
        notes=result.lines(),
    )
    missing = [f"not decoded: {video}: {why}" for video, why in result.missing.items()]
    refused = [f"refused: {sample}: {why}" for sample, why in result.refused.items()]
    bars.notes += [*missing, *refused]
    examples = Section("Examples", EXAMPLES)
    places = {video: place for place, video in enumerate(evaluator.dataset.ids)}
    for title, name, right in (("Right", "qa_right", True), ("Wrong", "qa_wrong", False)):
        chosen = choose_examples(result.answered, right, request.clips)
        if not chosen:
            continue
        clips = evaluator.dataset.batch([places[each.video] for each in chosen])
        frames = small_frames(clips.frames, FRAMES, FRAME_SIZE).numpy()
        alt = "; ".join(f"{a.question.text} {a.given} ({a.question.answer})" for a in chosen)
        drawn = picture(name, partial(draw_examples, chosen, frames), alt)
        examples.pictures.append((title, drawn))
    return [bars, examples] if examples.pictures else [bars]


def choose_examples(answered: Sequence[Answered], right: bool, count: int) -> list[Answered]:
    """Choose decoded questions that were answered right, or wrong: one a type and video in turn.

    The most confident answers come first.
    """
    fitting = [each for each in answered if each.guesses and each.right is right]
    fitting.sort(key=lambda each: -each.guesses[0][1])
    chosen: list[Answered] = []
    for fresh_type in (True, False):
        for each in fitting:
            videos = {other.video for other in chosen}
            types = {other.question.type for other in chosen}
            new = each.video not in videos and not (fresh_type and each.question.type in types)
            if new and len(chosen) < count:
                chosen.append(each)
    return chosen


def draw_types(result: QAResult, theme: Theme) -> Figure:
    """Draw two bars for each type and for all questions: the model's and the majority's."""
    rows = [
        (f"{kind} ({count.asked})", count.accuracy, result.majority.by_type[kind].accuracy)
        for kind, count in sorted(result.accuracy.by_type.items(), key=lambda item: -item[1].asked)
    ]
    total = result.accuracy.total
    rows.append((f"all ({total.asked})", total.accuracy, result.majority.total.accuracy))
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH, 0.9 + 0.46 * len(rows)), layout="constrained")
    places = np.arange(len(rows))[::-1].astype(float)
    for offset, column, colour, label in (
        (0.19, 1, theme.own, "model"),
        (-0.19, 2, theme.muted, "majority answer of the type"),
    ):
        values = [float(row[column]) for row in rows]  # type: ignore[arg-type]
        axes.barh(places + offset, values, height=0.34, color=colour, label=label)
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.8, place + offset, f"{value:.1f}", va="center", fontsize=8.5)
    axes.set_yticks(places, [str(row[0]) for row in rows])
    for tick in axes.get_yticklabels():
        tick.set_parse_math(False)
    axes.set(xlim=(0, 108), xlabel="accuracy, %")
    axes.xaxis.set_ticks(range(0, 101, 20))
    axes.grid(visible=False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def draw_examples(answered: Sequence[Answered], frames: np.ndarray, theme: Theme) -> Figure:
    """Draw the frames of each question's video beside its most probable answers.

    frames: uint8 [n, f, h, w, 3].
    """
    strips = [film_strip(each, 3, rgb(theme.surface)) for each in frames]
    height = STRIP_WIDTH * strips[0].shape[0] / strips[0].shape[1]
    column = PAGE_WIDTH - STRIP_WIDTH - 0.25
    questions = [wrap(each.question.text, column, 10.0, 2, bold=True) for each in answered]
    heights = [
        max(height, 0.2 * len(lines) + 0.26 + BAR_HEIGHT * (len(each.guesses) + 1))
        for each, lines in zip(answered, questions, strict=True)
    ]
    canvas = Canvas(PAGE_WIDTH, sum(heights) + ROW_GAP * (len(heights) - 1), theme)
    top = 0.0
    for each, strip, lines, tall in zip(answered, strips, questions, heights, strict=True):
        if top:
            canvas.line(0, top - ROW_GAP / 2, PAGE_WIDTH, top - ROW_GAP / 2)
        canvas.image(0, top, STRIP_WIDTH, height, strip)
        left = STRIP_WIDTH + 0.25
        canvas.text(left, top, "\n".join(lines), size=10.0, bold=True)
        _draw_guesses(canvas, each, left, top + 0.2 * len(lines) + 0.1, column)
        top += tall + ROW_GAP
    return canvas.figure


def _draw_guesses(canvas: Canvas, each: Answered, left: float, top: float, width: float) -> None:
    theme, truth = canvas.theme, each.question.answer
    labels = 1.5
    longest = width - labels - 0.6
    for place, (answer, share) in enumerate(each.guesses):
        y = top + place * BAR_HEIGHT
        colour: str = theme.muted
        if answer == truth:
            colour = theme.right
        elif place == 0:
            colour = theme.wrong
        (shown,) = wrap(answer, labels - 0.1, 9.0, 1) or [""]
        own: dict[str, Any] = {"size": 9.0, "colour": colour, "bold": colour != theme.muted}
        canvas.text(left, y, shown, **own)
        canvas.box(left + labels, y + 0.03, max(0.01, longest * share), 0.12, fill=colour)
        canvas.text(left + width, y, f"{100 * share:.1f} %", align="right", **own)
    note = f"type: {each.question.type}"
    if truth not in [answer for answer, _ in each.guesses]:
        note += (
            f"; right answer: {truth}, not among the first {counted(len(each.guesses), 'answer')}"
        )
    canvas.note(left, top + len(each.guesses) * BAR_HEIGHT + 0.04, note)
