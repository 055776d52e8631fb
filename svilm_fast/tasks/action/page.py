"""The page of recognition: accuracy, confusion, accuracy by class, curves."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from svilm_fast.report.canvas import PAGE_WIDTH
from svilm_fast.report.page import HeadlineTile, PageContent, Section, picture
from svilm_fast.report.sections import curves_section
from svilm_fast.report.theme import Theme
from svilm_fast.tasks.action.result import RecognitionResult
from svilm_fast.tasks.base import EvaluationRequest, ReportRequest, Task

MOST_CLASSES = 40  # that a confusion picture shows
MOST_NUMBERS = 20  # classes up to which its cells have numbers
LONGEST_NAME = 28
PAIRS = 5

TEXT = (
    "A row is the videos of a class, a column what they were taken for, in percent of the row. "
    "The diagonal is right."
)


def action_page(task: Task, request: ReportRequest) -> PageContent:
    """Evaluate the split and return the sections; without a split only the curves."""
    sections: list[Section] = []
    tiles: list[HeadlineTile] = []
    if request.split is not None:
        (evaluator,) = task.evaluators(request.tokenizer, request.split, request.max_clips)
        how = EvaluationRequest(request.device, progress=request.progress)
        result = evaluator.run(request.model, how)
        assert isinstance(result, RecognitionResult)
        sections += recognition_sections(result)
        found = result.scores
        tiles = [
            HeadlineTile(f"{found.top1:.1f} %", "top-1", f"{found.videos:,} videos"),
            HeadlineTile(f"{found.top5:.1f} %", "top-5"),
            HeadlineTile(f"{found.mean_per_class:.1f} %", "mean per class"),
        ]
    if request.series:
        sections.append(curves_section(request.series, task.metrics()))
    parameters = sum(parameter.numel() for parameter in request.model.parameters())
    return PageContent(sections, tiles, parameters)


def recognition_sections(result: RecognitionResult) -> list[Section]:
    """Return the sections of accuracy, confusion and classes of a result."""
    notes = [*result.lines()]
    notes += [f"not decoded: {video}: {why}" for video, why in result.missing.items()]
    accuracy = Section("Accuracy", "; ".join(result.summary()) + ".", notes=notes)
    shown, text = confused_classes(result), TEXT
    if len(shown) < len(result.scores.classes):
        text += f" Of {len(result.classes)} classes, the {len(shown)} with most errors are shown."
    names = result.classes.names
    pairs = [
        f"{names[i]} taken for {names[j]}: {count} of {int(result.confusion[i].sum())}"
        for i, j, count in most_confused(result.confusion)
    ]
    confusion = Section("Confusion", text, notes=pairs)
    if shown:
        alt = "; ".join(pairs) or "no video was taken for another class"
        drawn = picture("action_confusion", lambda theme: draw_confusion(result, shown, theme), alt)
        confusion.pictures.append(("", drawn))
    classes = Section("Accuracy by class", "Videos, right ones and top-1 of every class.")
    classes.table = result.table()
    return [accuracy, confusion, classes]


def confused_classes(result: RecognitionResult) -> list[int]:
    """Return the classes with decoded videos; the MOST_CLASSES with most errors, in their order."""
    sums = result.confusion.sum(axis=1)
    errors = sums - result.confusion.diagonal()
    present = [place for place in range(len(sums)) if sums[place]]
    return sorted(sorted(present, key=lambda place: -errors[place])[:MOST_CLASSES])


def most_confused(confusion: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (class, class given, videos) of the most frequent confusions, most frequent first."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS].tolist()
    found = [(*divmod(place, len(confusion)), int(wrong.flat[place])) for place in order]
    return [each for each in found if each[2]]


def draw_confusion(result: RecognitionResult, shown: list[int], theme: Theme) -> Figure:
    """Draw the rows and columns `shown`, and a last column for all other classes if any."""
    counts = result.confusion[shown]
    sums = counts.sum(axis=1, keepdims=True)
    inside = counts[:, shown]
    others = sums - inside.sum(axis=1, keepdims=True)
    names = [_short(result.classes.names[place]) for place in shown]
    columns, cells = list(names), inside
    if others.any():
        columns, cells = [*names, "other classes"], np.hstack([inside, others])
    shares = 100 * cells / sums
    side = min(PAGE_WIDTH, 3.2 + 0.45 * len(columns))
    figure, axes = plt.subplots(figsize=(side, side * 0.85), layout="constrained")
    colours = LinearSegmentedColormap.from_list("confusion", [theme.surface, theme.own])
    drawn = axes.imshow(shares, cmap=colours, vmin=0, vmax=100, aspect="auto")
    size = 9.0 if len(columns) <= MOST_NUMBERS else 6.5
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
    rows = [f"{name} ({total})" for name, total in zip(names, sums[:, 0].tolist(), strict=True)]
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    axes.set(xlabel="class given", ylabel="class of the video (videos)")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    if len(columns) <= MOST_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                colour = theme.surface if share > 55 else theme.ink
                axes.text(
                    column, row, f"{share:.0f}", ha="center", va="center", color=colour, size=8.5
                )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.6, label="% of the row")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
