"""Pictures of retrieval: captions with their best clips as film strips, the right one framed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from svilm_fast.evaluation.result import RetrievalResult
from svilm_fast.report.canvas import PAGE_WIDTH, Canvas, wrap
from svilm_fast.report.strips import film_strip
from svilm_fast.report.theme import Theme, rgb

COLUMNS = 5
GAP = 0.16
CAPTION_SIZE = 10.0
CAPTION_LINE = 0.19
LABEL_HEIGHT = 0.22
ROW_GAP = 0.26


def choose_queries(result: RetrievalResult, count: int) -> tuple[list[int], list[int]]:
    """Choose the `count` best and the `count` worst queries, each video at most once.

    The best queries have the best rank, then the largest lead over the next clip. The worst queries
    have the highest rank. No query is in both lists.
    """
    rank = result.text_rank.numpy()
    scores = result.top_scores.numpy()
    lead = scores[:, 0] - scores[:, 1] if scores.shape[1] > 1 else scores[:, 0]
    best_first = np.lexsort((-lead, rank)).tolist()
    best = _distinct(result, best_first, count)
    worst = _distinct(result, [row for row in best_first[::-1] if row not in set(best)], count)
    return best, worst


def draw_retrieval_strip(result: RetrievalResult, queries: Sequence[int], theme: Theme) -> Figure:
    """Draw one block for each query: its caption, then its best clips with their cosine scores.

    The right clip has a frame and its expected rank (1.5 if it ties with another clip for the first
    place). If it is not among the best, it is drawn last.
    Needs a result with frames (`RetrievalOptions(keep_frames=4)`).
    """
    frames = result.embeddings.frames
    if frames is None:
        raise ValueError(
            "the result holds no frames: call evaluate_dataset with RetrievalOptions(keep_frames=4)"
        )
    if not queries:
        raise ValueError("no queries to draw: name at least one")
    pixels = frames.numpy()
    cell = (PAGE_WIDTH - (COLUMNS - 1) * GAP) / COLUMNS
    aspect = film_strip(pixels[0], 2, rgb(theme.surface)).shape
    strip_height = cell * aspect[0] / aspect[1]
    captions = [
        wrap(result.embeddings.captions[row], PAGE_WIDTH - 0.2, CAPTION_SIZE, 2, bold=True)
        for row in queries
    ]
    heights = [len(lines) * CAPTION_LINE + 0.08 + strip_height + LABEL_HEIGHT for lines in captions]
    total = sum(heights) + ROW_GAP * (len(queries) - 1) + 0.1
    canvas = Canvas(PAGE_WIDTH, total, theme)
    top = 0.04
    for place, (row, lines, height) in enumerate(zip(queries, captions, heights, strict=True)):
        if place:
            canvas.line(0, top - ROW_GAP / 2, PAGE_WIDTH, top - ROW_GAP / 2)
        canvas.text(0, top, "\n".join(lines), size=CAPTION_SIZE, bold=True)
        _draw_candidates(
            canvas, result, row, top + len(lines) * CAPTION_LINE + 0.08, cell, strip_height
        )
        top += height + ROW_GAP
    return canvas.figure


def query_text(result: RetrievalResult, row: int) -> str:
    """The caption of a query on one line, for alternative texts."""
    return textwrap.shorten(result.embeddings.captions[row], 160, placeholder=" …")


def _draw_candidates(
    canvas: Canvas, result: RetrievalResult, row: int, top: float, cell: float, height: float
) -> None:
    found = result.embeddings
    assert found.frames is not None
    pixels = found.frames.numpy()
    right = int(found.video_of_text[row])
    shown = [int(video) for video in result.top_videos[row][:COLUMNS]]
    scores = [float(score) for score in result.top_scores[row][:COLUMNS]]
    places = [f"{place + 1}" for place in range(len(shown))]
    if right not in shown:
        score = float(found.texts[row].float() @ found.videos[right].float())
        keep = COLUMNS - 1
        shown = [*shown[:keep], right]
        scores = [*scores[:keep], score]
        places = [*places[:keep], ""]
    # The order of tied candidates on the page is arbitrary, so a tie shows its expected rank.
    places[shown.index(right)] = f"{result.text_rank[row] + 1:g}"
    theme = canvas.theme
    for column, (video, score, place) in enumerate(zip(shown, scores, places, strict=True)):
        left = column * (cell + GAP)
        strip = film_strip(
            pixels[video], gap=max(1, pixels.shape[2] // 40), background=rgb(theme.surface)
        )
        canvas.image(left, top, cell, height, strip)
        is_right = video == right
        if is_right:
            canvas.box(left, top, cell, height, edge=theme.right, thickness=2.6, layer=4)
        colour = theme.right if is_right else theme.muted
        label = f"{place}.  right clip" if is_right else f"{place}."
        canvas.text(left, top + height + 0.05, label, size=8.5, colour=colour, bold=is_right)
        canvas.text(
            left + cell,
            top + height + 0.05,
            f"{score:.3f}",
            size=8.5,
            colour=colour,
            align="right",
            bold=is_right,
        )


def _distinct(result: RetrievalResult, order: Sequence[int], count: int) -> list[int]:
    chosen: list[int] = []
    videos: set[int] = set()
    for row in order:
        video = int(result.embeddings.video_of_text[row])
        if len(chosen) < count and video not in videos:
            videos.add(video)
            chosen.append(row)
    return chosen
